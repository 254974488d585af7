"""PEFT's LoRA and LoRA-FA on what `quality -only export` wrote: the same tokens in the same order, the same weights, batch, schedule, clipping and Adam.

usage: peft_gsm8k.py DIR [--device cuda] [--workers 4] [--limit SECONDS] [--seeds 3] [--only lora-r8,lorafa-r16,…] [--steps N] [--test N]

DIR holds data.json and base/. Each method and rank tries three rates with the first seed (further ones where the best is at the edge), and the best with the other seeds;
processes share the work, most important first. Lines are CSV, also in DIR/peft.csv, and are written as they come.
"""
import argparse, importlib.util, json, math, multiprocessing, os, sys, time

RANKS = {"lora": (4, 8, 16, 32), "lorafa": (8, 16, 32, 64)}
ORDER = ["lora-r8", "lora-r16", "lorafa-r16", "lorafa-r64", "lora-r32", "lorafa-r32", "lora-r4", "lorafa-r8"]
HEAD = "method,rank,seed,rate,loss,steps,seconds,trained"
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def first_rates(method, rank):
    if method == "lora":
        return [3e-3, 1e-3, 1e-2]
    middle = 7e-3 / 0.577 * (16 / rank) ** 0.75  # where rows are as here: uniform, of length 0.577
    return [middle, middle / 2, middle * 2]


class Worker:
    def __init__(self, o):
        import torch
        from transformers import AutoModelForCausalLM

        self.torch, self.o = torch, o
        with open(os.path.join(o.dir, "data.json")) as f:
            self.data = json.load(f)
        self.base = AutoModelForCausalLM.from_pretrained(os.path.join(o.dir, "base"), dtype=torch.bfloat16, attn_implementation="sdpa").to(o.device)
        self.base.config.use_cache = False
        self.cast = torch.autocast(o.device, dtype=torch.bfloat16)

    def loss(self, model, examples):
        """Sum over the trained tokens, and their number. Padding is on the right, where causal attention does not see it: no mask is needed."""
        torch = self.torch
        width = (max(len(e["ids"]) for e in examples) + 15) // 16 * 16
        pad = lambda field, fill: torch.tensor([e[field] + [fill] * (width - len(e[field])) for e in examples], device=self.o.device)
        ids, labels = pad("ids", 0), pad("labels", -1)
        with self.cast:
            hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
            keep = labels >= 0
            logits = model.lm_head(hidden[keep])
        return torch.nn.functional.cross_entropy(logits.float(), labels[keep], reduction="sum"), sum(1 for e in examples for l in e["labels"] if l >= 0)

    def evaluate(self, model):
        torch, test = self.torch, sorted(self.data["test"][: self.o.test], key=lambda e: len(e["ids"]))
        total, tokens = 0.0, 0
        with torch.no_grad():
            for i in range(0, len(test), 16):
                l, n = self.loss(model, test[i : i + 16])
                total, tokens = total + l.item(), tokens + n
        return total / tokens

    def run(self, method, rank, seed, rate):
        torch = self.torch
        from peft import LoraConfig, get_peft_model
        from peft.optimizers import create_lorafa_optimizer

        torch.manual_seed(seed)
        began = time.time()
        wrapped = get_peft_model(self.base, LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, bias="none", task_type="CAUSAL_LM", target_modules=TARGETS))
        for p in wrapped.parameters():
            if p.requires_grad:
                p.data = p.data.float()
        if method == "lorafa":
            optimizer = create_lorafa_optimizer(wrapped, r=rank, lora_alpha=2 * rank, lr=rate)
        trained = [p for p in wrapped.parameters() if p.requires_grad]
        if method == "lora":
            optimizer = torch.optim.AdamW(trained, lr=rate, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.0, fused=self.o.device == "cuda")
        model, data = wrapped.base_model.model, self.data
        order, batch, steps = data["orders"][str(seed)], data["batch"], min(self.o.steps, data["steps"])
        wrapped.train()
        inverses = FrozenInverses(torch) if method == "lorafa" else None
        for s in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * s / steps))
            total, tokens = self.loss(model, [data["train"][i] for i in order[s * batch : (s + 1) * batch]])
            (total / tokens).backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            if inverses:
                inverses.step(optimizer)
            else:
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        wrapped.eval()
        loss, count = self.evaluate(model), sum(p.numel() for p in trained)
        self.base = wrapped.unload()
        return loss, steps, time.time() - began, count


class FrozenInverses:
    """PEFT's LoRA-FA inverts A·Aᵀ of every linear in every step. A does not change: the first step's inverses serve all others."""

    def __init__(self, torch):
        self.torch, self.kept = torch, []

    def step(self, optimizer):
        linalg, at, pinv = self.torch.linalg, 0, self.torch.linalg.pinv

        def cached(x):
            nonlocal at
            if at == len(self.kept):
                self.kept.append(linalg.inv(x))  # of a full-rank matrix it is the pseudoinverse
            at += 1
            return self.kept[at - 1]

        linalg.pinv = cached
        try:
            optimizer.step()
        finally:
            linalg.pinv = pinv


def work(o, jobs, lines):
    worker = Worker(o)
    while True:
        try:
            name = jobs.get(timeout=1)
        except Exception:
            return
        if name is None:
            return
        if name == "base":
            lines.put(f"base,0,0,0,{worker.evaluate(worker.base):.4f},0,0,0")
            continue
        method, rank = name.split("-r")[0], int(name.split("-r")[1])
        losses = {}

        def one(seed, rate):
            loss, steps, seconds, trained = worker.run(method, rank, seed, rate)
            lines.put(f"{method},{rank},{seed},{rate:.4g},{loss:.4f},{steps},{seconds:.1f},{trained}")
            return loss if math.isfinite(loss) else math.inf

        for rate in first_rates(method, rank):
            losses[rate] = one(1, rate)
        for _ in range(2):  # the best is at the edge: go on
            best = min(losses, key=losses.get)
            step = 3 if method == "lora" else 2
            following = best * step if best == max(losses) else best / step if best == min(losses) else None
            if following is None:
                break
            losses[following] = one(1, following)
        best = min(losses, key=losses.get)
        for seed in range(2, min(o.seeds, len(worker.data["orders"])) + 1):
            one(seed, best)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("dir")
    p.add_argument("--device", default="cuda")
    p.add_argument("--workers", type=int, default=4)
    p.add_argument("--limit", type=float, default=1e9)
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--steps", type=int, default=1 << 30)
    p.add_argument("--test", type=int, default=1 << 30)
    p.add_argument("--only", default=",".join(ORDER))
    o = p.parse_args()
    missing = [m for m in ("torch", "transformers", "peft") if importlib.util.find_spec(m) is None]
    if missing:
        print("peft_gsm8k.py: not there: " + ", ".join(missing))
        return
    began, spawn = time.time(), multiprocessing.get_context("spawn")
    jobs, lines = spawn.Queue(), spawn.Queue()
    for name in ["base"] + o.only.split(",") + [None] * o.workers:
        jobs.put(name)
    workers = [spawn.Process(target=work, args=(o, jobs, lines), daemon=True) for _ in range(o.workers)]
    for w in workers:
        w.start()
    with open(os.path.join(o.dir, "peft.csv"), "w") as f:

        def say(line):
            print(line, flush=True)
            print(line, file=f, flush=True)

        say(HEAD)
        while time.time() - began < o.limit and (any(w.is_alive() for w in workers) or not lines.empty()):
            try:
                say(lines.get(timeout=0.5))
            except Exception:
                pass
    for w in workers:
        if w.is_alive():
            print("peft_gsm8k.py: out of time; the lines so far are whole", flush=True)
            w.terminate()
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
