"""Turns quality.csv, peft.csv and accuracy.csv of a folder into Markdown tables.

usage: report.py FOLDER [--write]

With --write the tables replace what is between the lines `<!-- begin NAME -->` and `<!-- end NAME -->` of docs/quality.md and docs/learning-rate.md (NAME: here, peft, accuracy, sweep);
otherwise they are printed. What a cut run lacks shows as a dash.
"""
import csv, math, os, re, sys
from collections import defaultdict

# Values of B per unit of rank, of all linears and layers: SmolLM2-135M's; A has 4,992 a layer where each linear has its own, B 5,184.
IN, OUT = 30 * 4992, 30 * 5184
FOLDER = sys.argv[1]


def rows(name):
    path = os.path.join(FOLDER, name)
    if not os.path.exists(path):
        return []
    with open(path) as f:
        return list(csv.DictReader(l for l in f if not l.startswith("#")))


def table(head, body):
    return "\n".join("| " + " | ".join(map(str, r)) + " |" for r in [head, ["---"] * len(head)] + body)


def spread(losses):
    """The mean and half the range over seeds."""
    if not losses:
        return "—"
    if any(math.isnan(x) for x in losses):
        return "diverged"
    mean = sum(losses) / len(losses)
    return f"{mean:.3f} ± {(max(losses) - min(losses)) / 2:.3f}" + (f" ({len(losses)})" if len(losses) != 3 else "")


def ordered(values):
    return list(dict.fromkeys(values))


here, peft, accuracy = rows("quality.csv"), rows("peft.csv"), rows("accuracy.csv")


def sweep():
    out = []
    of = [r for r in here if r["kind"] == "sweep"]
    for basis in ordered(r["basis"] for r in of):
        mine = [r for r in of if r["basis"] == basis]
        factors = sorted({float(r["factor"]) for r in mine})
        body = []
        for rank in sorted({int(r["rank"]) for r in mine}):
            loss = {float(r["factor"]): float(r["loss"]) for r in mine if int(r["rank"]) == rank}
            auto = [float(r["rate"]) / float(r["factor"]) for r in mine if int(r["rank"]) == rank]
            least = min(loss.values())
            body.append([f"r{rank}", f"{auto[0]:.2g}"] + [("**%.3f**" if loss[f] == least else "%.3f") % loss[f] if f in loss else "—" for f in factors])
        out.append(table([basis, "rate at 1"] + [f"{f:g}" for f in factors], body))
    return "\n\n".join(out)


def here_table():
    losses, factor = defaultdict(list), {}
    for r in here:
        key = (r["kind"], r["basis"], int(r["rank"]), r["correction"])
        losses[key].append(float(r["loss"]))
        factor[key] = float(r["factor"])
    base = next((float(r["loss"]) for r in here if r["kind"] == "base"), math.nan)
    body = []
    for basis, rank, correction in ordered((r["basis"], int(r["rank"]), r["correction"]) for r in here if r["kind"] == "auto"):
        best = ("best", basis, rank, correction)
        body.append([basis, rank, "on" if correction == "true" else "off", f"{rank * OUT / 1e6:.2f}", spread(losses["auto", basis, rank, correction]),
                     f"{spread(losses[best])}, at {factor[best]:g}" if best in losses else "as auto" if any(r["kind"] == "best" for r in here) else "—"])
    body.sort(key=lambda r: (r[0], r[1], r[2]))
    return f"The base: {base:.3f}.\n\n" + table(["basis", "rank", "correction", "million values of a tenant", "loss at `auto`", "loss at the sweep's best factor"], body)


def peft_table():
    losses, rates = defaultdict(lambda: defaultdict(dict)), []
    base = next((r["loss"] for r in peft if r["method"] == "base"), "—")
    for r in peft:
        if r["method"] != "base":
            losses[r["method"], int(r["rank"])][float(r["rate"])][r["seed"]] = float(r["loss"])
    body = []
    for (method, rank), by_rate in sorted(losses.items()):
        first = {rate: s["1"] for rate, s in by_rate.items() if "1" in s and math.isfinite(s["1"])}
        if not first:
            continue
        best = min(first, key=first.get)
        values = rank * (IN + OUT) if method == "lora" else rank * OUT
        body.append([{"lora": "LoRA", "lorafa": "LoRA-FA"}[method], rank, f"{values / 1e6:.2f}", f"{best:.2g}", spread(list(by_rate[best].values())), ", ".join(f"{l:.3f} at {x:.2g}" for x, l in sorted(first.items()))])
    equal = []
    mine = defaultdict(list)
    for r in here:
        if r["kind"] in ("auto", "best"):
            mine[int(r["rank"]), r["kind"], r["basis"], r["correction"], r["factor"]].append(float(r["loss"]))

    def ours(rank):
        """Of the configurations at that rank the one whose mean is least."""
        all_ = {k: v for k, v in mine.items() if k[0] == rank and all(map(math.isfinite, v))}
        if not all_:
            return "—"
        k = min(all_, key=lambda k: sum(all_[k]) / len(all_[k]))
        return f"{spread(all_[k])} (r{rank}, {k[2]}, correction {'on' if k[3] == 'true' else 'off'}, factor {k[4]})"

    for (method, rank), by_rate in sorted(losses.items()):
        first = {rate: s["1"] for rate, s in by_rate.items() if "1" in s and math.isfinite(s["1"])}
        if method == "lora" and first:
            equal.append([f"LoRA r{rank}", spread(list(by_rate[min(first, key=first.get)].values())), ours(rank), ours(2 * rank)])
    return f"The base in PyTorch: {base}.\n\n" + table(["PEFT", "rank", "million values", "best rate", "loss", "loss by rate, first seed"], body) + \
        "\n\nA LoRA of rank r stores about as many values as a B of rank 2r (1.96 r). The best configuration here beside it:\n\n" + table(["PEFT", "loss", "here at equal rank", "here at equal bytes"], equal)


def accuracy_table():
    return table(["task", "model", "right", "of", "share", ""], [[r["task"], r["model"], r["right"], r["of"], f"{100 * int(r['right']) / max(1, int(r['of'])):.1f} %", r["detail"]] for r in accuracy])


TABLES = {"docs/quality.md": {"here": (here, here_table), "peft": (peft, peft_table), "accuracy": (accuracy, accuracy_table)}, "docs/learning-rate.md": {"sweep": (here, sweep)}}
for path, tables in TABLES.items():
    text = open(path).read()
    for name, (given, make) in tables.items():
        if not given:
            continue
        if "--write" not in sys.argv:
            print(f"## {name}\n\n{make()}\n")
            continue
        text = re.sub(rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)", lambda m: m[1] + "\n" + make() + "\n\n" + m[2], text, flags=re.S)
    if "--write" in sys.argv:
        open(path, "w").write(text)
