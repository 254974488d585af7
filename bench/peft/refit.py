"""Moves LoRAs that PEFT trained (train.py) to bhive in several ways, and prints how close each comes: make bench-refit.

usage: refit.py BHIVE LORAS_DIR WORK_DIR [VARIANT…]

For the server's default basis (64 orthonormal rows) and for the bases that `bhive adapters import --dry-run` proposes for all of the LoRAs together, each LoRA is
projected and refit on the texts that it was trained on, and, where a variant says "other texts", on texts that it never saw; losses are over its held-out
examples, KL from the LoRA's distribution at 512 tokens of them. Results are kept in WORK_DIR, so that a run that broke off goes on. VARIANT… are those to be
run; default: all.
"""
import json, os, re, subprocess, sys, threading

BHIVE, LORAS, WORK, *WANTED = sys.argv[1:]
MODEL = os.environ.get("BHIVE_MODEL", "smollm2")


def start(name, *flags):
    p = subprocess.Popen([BHIVE, "serve", "--model", MODEL, "--addr", "127.0.0.1:0", "--data", os.path.join(WORK, name), "--kv-mib", "64", "--log-format", "json", *flags],
                         stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    for line in p.stderr:
        entry = json.loads(line) if line.startswith("{") else {}
        if entry.get("msg") == "serving":
            threading.Thread(target=p.stderr.read, daemon=True).start()
            return p, entry["address"]
    sys.exit(f"the server did not start: {p.wait()}")


def bhive(url, *args):
    return subprocess.run([BHIVE, "adapters", "import", "--server", url, "--log-level", "error", *args], check=True, stdout=subprocess.PIPE, text=True).stdout


def refit(url, task, texts, *flags):
    """{how: (loss, KL)}, and the shares kept of the weights by projection and of the outputs by the refit."""
    folder = os.path.join(LORAS, task)
    out = bhive(url, folder, "--dry-run", "--model", MODEL, "--refit", os.path.join(folder, texts), "--refit-check", os.path.join(folder, "held_out.jsonl"), *flags)
    losses = {m[1]: (float(m[2]), float(m[3])) for m in re.finditer(r"^(the LoRA|the base|projected|refit)\b.*?\s([\d.]+)\s+([\d.]+)$", out, re.M)}
    kept = re.search(r"^all\s+([\d.]+) %\s+([\d.]+) %$", out, re.M)
    return {"losses": losses, "kept": [float(kept[1]), float(kept[2])], "report": out}


def main():
    os.makedirs(WORK, exist_ok=True)
    tasks = sorted(t for t in os.listdir(LORAS) if os.path.exists(os.path.join(LORAS, t, "peft.json")))
    path = os.path.join(WORK, "refit.json")
    results = json.load(open(path)) if os.path.exists(path) else {}
    imported = lambda rows: ["--basis", "import", "--basis-from", os.path.join(WORK, f"best{rows}"), "--basis-rows", str(rows)]
    servers = {"data": ([], {"64 orthonormal rows": [], "64 orthonormal rows, other texts": [], "16 of them": ["--rank", "16"], "16 of them, other texts": ["--rank", "16"]}),
               "data64": (imported(64), {"64 proposed rows": []}), "data16": (imported(16), {"16 proposed rows": []})}
    wanted = lambda b: not WANTED or b in WANTED
    bases = [b for _, variants in servers.values() for b in variants if wanted(b)]
    for data, (serve, variants) in servers.items():
        todo = [(b, flags, t) for b, flags in variants.items() for t in tasks if wanted(b) and f"{b}/{t}" not in results]
        if not todo:
            continue
        p, url = start(data, *serve)
        try:
            for rows in (64, 16):
                if not os.path.exists(os.path.join(WORK, f"best{rows}")):
                    bhive(url, *[os.path.join(LORAS, t) for t in tasks], "--dry-run", "--rows", str(rows), "--basis-out", os.path.join(WORK, f"best{rows}"))
            for basis, flags, t in todo:
                results[f"{basis}/{t}"] = r = refit(url, t, "other.jsonl" if basis.endswith("other texts") else "train.jsonl", *flags)
                print(basis, t, json.dumps(r["losses"]), r["kept"], flush=True)
                with open(path, "w") as f:
                    json.dump(results, f, indent=1)
        finally:
            p.terminate()
            p.wait()

    print(f"\n| | {' | '.join(f'{t}: loss | KL' for t in tasks)} |\n|---|{'---|---|' * len(tasks)}")
    row = lambda name, cells: print(f"| {name} | {' | '.join(f'{l:.3f} | {k:.3f}' for l, k in cells)} |")
    first = bases[0]
    for how in ("the base", "the LoRA"):
        row(how + (", moved without loss" if how == "the LoRA" else ""), [results[f"{first}/{t}"]["losses"][how] for t in tasks])
    for basis in bases:
        for how in ("projected", "refit"):
            kept = [results[f"{basis}/{t}"]["kept"][how == "refit"] for t in tasks]
            row(f"{how}; {basis} (kept: {', '.join(f'{k:.1f} %' for k in kept)})", [results[f"{basis}/{t}"]["losses"][how] for t in tasks])
    print("\nMeasured by PEFT itself, of the LoRAs: " + ", ".join(f"{t} {json.load(open(os.path.join(LORAS, t, 'peft.json')))['lora']:.3f}" for t in tasks))


main()
