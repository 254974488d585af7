"""Turns quality.csv, peft.csv and accuracy.csv of a folder into Markdown tables.

usage: report.py FOLDER [--write]

With --write the tables replace what is between the lines `<!-- begin NAME -->` and `<!-- end NAME -->` of docs/quality.md and docs/learning-rate.md (NAME: here, peft, accuracy, sweep, recheck);
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


def comments(name):
    path = os.path.join(FOLDER, name)
    return [l for l in open(path) if l.startswith("#")] if os.path.exists(path) else []


here, peft, accuracy = rows("quality.csv"), rows("peft.csv"), rows("accuracy.csv")


def by_factor(of):
    """Losses of one seed by basis, rank and factor; the least of a row is bold."""
    out = []
    for basis in ordered(r["basis"] for r in of):
        mine = [r for r in of if r["basis"] == basis]
        factors = sorted({float(r["factor"]) for r in mine})
        body = []
        for rank in sorted({int(r["rank"]) for r in mine}):
            loss = {float(r["factor"]): float(r["loss"]) for r in mine if int(r["rank"]) == rank}
            auto = [float(r["rate"]) / float(r["factor"]) for r in mine if int(r["rank"]) == rank]
            least = min((x for x in loss.values() if math.isfinite(x)), default=math.nan)
            body.append([f"r{rank}", f"{auto[0]:.2g}"] + [("**%.3f**" if loss[f] == least else "%.3f") % loss[f] if f in loss else "—" for f in factors])
        out.append(table([basis, "rate at 1"] + [f"{f:g}" for f in factors], body))
    return "\n\n".join(out)


def sweep():
    return by_factor([r for r in here if r["kind"] == "sweep"])


def recheck():
    """The table's first seed, corrected as a job does of itself."""
    return by_factor([r for r in here if r["kind"] in ("auto", "factor") and r["seed"] == "1" and (r["correction"] == "true") == (r["basis"] == "kaiming")])


class Configuration:
    """A basis, rank, correction and factor here: the losses of its seeds."""

    def __init__(self, key, rows):
        self.basis, self.rank, self.correction, self.factor = key
        self.losses = [float(r["loss"]) for r in rows]
        self.first = next((float(r["loss"]) for r in rows if r["seed"] == "1"), math.inf)
        self.mean = sum(self.losses) / len(self.losses)

    def __str__(self):
        return f"{spread(self.losses)} (r{self.rank}, {self.basis}, correction {self.correction}, factor {self.factor:g})"


def configurations():
    rows = defaultdict(list)
    for r in here:
        if r["kind"] in ("auto", "factor"):
            rows[r["basis"], int(r["rank"]), "on" if r["correction"] == "true" else "off", float(r["factor"])].append(r)
    return {k: Configuration(k, v) for k, v in rows.items()}


def here_table():
    all_ = configurations()
    base = next((float(r["loss"]) for r in here if r["kind"] == "base"), math.nan)
    body = []
    for basis, rank, correction in sorted({k[:3] for k in all_}):
        tried = [c for k, c in all_.items() if k[:3] == (basis, rank, correction)]
        auto = [c for c in tried if c.factor == 1]
        best = min(tried, key=lambda c: (not math.isfinite(c.first), c.first))
        body.append([basis, rank, correction, f"{rank * OUT / 1e6:.2f}", spread(auto[0].losses) if auto else "—", "—" if len(tried) < 2 else "as auto" if best.factor == 1 else f"{spread(best.losses)}, at {best.factor:g}"])
    return f"The base: {base:.3f}.\n\n" + table(["basis", "rank", "correction", "million values of a tenant", "loss at `auto`", "loss at the best factor"], body)


def peft_table():
    losses = defaultdict(lambda: defaultdict(dict))
    base = next((r["loss"] for r in peft if r["method"] == "base"), "—")
    for r in peft:
        if r["method"] != "base":
            losses[r["method"], int(r["rank"])][float(r["rate"])][r["seed"]] = float(r["loss"])
    body, equal = [], []
    all_ = configurations()

    def ours(rank):
        """Of the configurations at that rank with the most seeds the one whose mean is least."""
        of = [c for c in all_.values() if c.rank == rank and math.isfinite(c.mean)]
        most = max((len(c.losses) for c in of), default=0)
        return min((c for c in of if len(c.losses) == most), key=lambda c: c.mean, default="—")

    def default(rank):
        """What POST /adapters does of itself."""
        c = all_.get(("orthonormal", rank, "off", 1.0))
        return spread(c.losses) if c else "—"

    for (method, rank), by_rate in sorted(losses.items()):
        first = {rate: s["1"] for rate, s in by_rate.items() if "1" in s}
        finite = {rate: x for rate, x in first.items() if math.isfinite(x)}
        if not finite:
            continue
        best = min(finite, key=finite.get)
        values = rank * (IN + OUT) if method == "lora" else rank * OUT
        name, loss = {"lora": "LoRA", "lorafa": "LoRA-FA"}[method], spread(list(by_rate[best].values()))
        body.append([name, rank, f"{values / 1e6:.2f}", f"{best:.2g}", loss, ", ".join(f"{l:.3f} at {x:.2g}" for x, l in sorted(first.items()))])
        same = 2 * rank if method == "lora" else rank
        equal.append([f"{name} r{rank}", loss, default(rank), ours(rank), default(same), ours(same)])
    checks = [l[2:].strip() for l in comments("peft.csv") if l.startswith("# check")]
    return f"The base in PyTorch: {base}.\n\n" + table(["PEFT", "rank", "million values", "best rate", "loss", "loss by rate, first seed"], body) + \
        "\n\nA LoRA of rank r stores about as many values as a B of rank 2r (1.96 r); a LoRA-FA's B as many as here. Beside it what `auto` gives here (orthonormal, correction off), and the best of " + \
        "the configurations here:\n\n" + table(["PEFT", "loss", "here at equal rank, `auto`", "here at equal rank, best", "here at equal bytes, `auto`", "here at equal bytes, best"], equal) + \
        ("\n\nIn the same run, " + "; ".join(checks) + "." if checks else "")


def accuracy_table():
    return table(["task", "model", "right", "of", "share", ""], [[r["task"], r["model"], r["right"], r["of"], f"{100 * int(r['right']) / max(1, int(r['of'])):.1f} %", r["detail"]] for r in accuracy])


TABLES = {"docs/quality.md": {"here": (here, here_table), "peft": (peft, peft_table), "accuracy": (accuracy, accuracy_table)},
          "docs/learning-rate.md": {"sweep": ([r for r in here if r["kind"] == "sweep"], sweep), "recheck": ([r for r in here if r["kind"] == "factor"], recheck)}}
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
