"""Trains ordinary LoRAs on SmolLM2 with PEFT, for refit.py: one a task, each on 100 short examples for one epoch.

usage: train.py GGUF DATA_DIR OUT_DIR SERVER_URL TASK…

DATA_DIR holds gsm8k_train.jsonl, gsm8k_test.jsonl and HumanEval.jsonl.gz. Tokens come from a running `bhive serve --model smollm2`, so that both sides see
the same. For each task (solve, ask, answer, code) OUT_DIR/TASK gets PEFT's two files, train.jsonl, held_out.jsonl and other.jsonl (what bhive reads; the last
are texts of the same kind, of up to 400 tokens, that were neither trained on nor held out), and peft.json: what PEFT measures of the LoRA on held_out.jsonl.
"""
import gzip, json, os, sys, time, urllib.request

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

GGUF, DATA, OUT, URL, *TASKS = sys.argv[1:]
TRAIN, HELD_OUT, LONGEST = 100, 50, 200  # examples, examples, tokens
OTHER, OTHER_LONGEST = 100, 400  # examples and tokens of other.jsonl
RANK, ALPHA, RATE, BATCH = 8, 16, 1e-3, 4
END = "<|im_end|>"


def call(path, body):
    q = urllib.request.Request(URL + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(q) as a:
        return json.loads(a.read())


def encode(user, assistant):
    """ids, and labels that are aligned with them; -100 is not trained."""
    head = call("/tokenize", {"messages": [{"role": "user", "content": user}], "add_generation_prompt": True})["tokens"]
    tail = call("/tokenize", {"prompt": assistant + END, "add_special_tokens": False})["tokens"]
    return head + tail, [-100] * len(head) + tail


def rows(name):
    path = os.path.join(DATA, name)
    with (gzip.open(path, "rt") if name.endswith(".gz") else open(path)) as f:
        return [json.loads(line) for line in f]


def tasks():
    train, test, code = rows("gsm8k_train.jsonl"), rows("gsm8k_test.jsonl"), rows("HumanEval.jsonl.gz")
    yield "solve", [(r["question"], r["answer"]) for r in train], [(r["question"], r["answer"]) for r in test]
    yield "ask", [(r["answer"], r["question"]) for r in train[1000:]], [(r["answer"], r["question"]) for r in test[200:]]
    final = lambda r: (r["question"], "The answer is " + r["answer"].split("####")[1].strip() + ", full stop.")
    yield "answer", [final(r) for r in train[2000:]], [final(r) for r in test[400:]]
    body = [(r["prompt"], r["canonical_solution"].rstrip()) for r in code]
    yield "code", body[:110], body[110:]


def pick(pairs, n, longest=LONGEST):
    """The first n examples that are short enough, with their tokens."""
    out = []
    for user, assistant in pairs:
        ids, labels = encode(user, assistant)
        if len(ids) <= longest:
            out.append((user, assistant, ids, labels))
        if len(out) == n:
            break
    return out


def batch(examples):
    width = max(len(e[2]) for e in examples)
    pad = lambda v, fill: torch.tensor([x + [fill] * (width - len(x)) for x in v])
    ids, labels = pad([e[2] for e in examples], 0), pad([e[3] for e in examples], -100)
    mask = pad([[1] * len(e[2]) for e in examples], 0)
    return ids, labels, mask


def loss(model, examples):
    """Sum over the trained tokens, and their number."""
    ids, labels, mask = batch(examples)
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, reduction="sum"), (labels[:, 1:] >= 0).sum()


def mean_loss(model, examples):
    model.eval()
    with torch.no_grad():
        sums = [loss(model, examples[i : i + BATCH]) for i in range(0, len(examples), BATCH)]
    return (sum(s for s, _ in sums) / sum(n for _, n in sums)).item()


def main():
    for name, train, held_out in tasks():
        folder = os.path.join(OUT, name)
        if name not in TASKS or os.path.exists(os.path.join(folder, "peft.json")):
            continue
        torch.manual_seed(0)
        os.makedirs(folder, exist_ok=True)
        pairs, train, held_out = train, pick(train, TRAIN), pick(held_out, HELD_OUT)
        trained = {u for u, _, _, _ in train}
        other = pick([p for p in pairs if p[0] not in trained], OTHER, OTHER_LONGEST)
        for file, examples in (("train.jsonl", train), ("held_out.jsonl", held_out), ("other.jsonl", other)):
            with open(os.path.join(folder, file), "w") as f:
                f.writelines(json.dumps({"messages": [{"role": "user", "content": u}, {"role": "assistant", "content": a}]}) + "\n" for u, a, _, _ in examples)
        base = AutoModelForCausalLM.from_pretrained(os.path.dirname(GGUF), gguf_file=os.path.basename(GGUF), dtype=torch.float32)
        said = {"train": len(train), "held_out": len(held_out), "other": len(other), "tokens": sum(len(e[2]) for e in train), "steps": []}
        model = get_peft_model(base, LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, task_type="CAUSAL_LM",
                               target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]))
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE, weight_decay=0.0)
        steps = len(train) // BATCH
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min(1, (s + 1) / 3) * (1 - s / steps))
        order, start = torch.randperm(len(train)).tolist(), time.time()
        model.train()
        for s in range(steps):
            total, tokens = loss(model, [train[i] for i in order[s * BATCH : (s + 1) * BATCH]])
            (total / tokens).backward()
            said["steps"].append(round((total / tokens).item(), 4))
            print(name, s, said["steps"][-1], flush=True)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step(), schedule.step(), optimizer.zero_grad()
        said["seconds"] = time.time() - start
        model.save_pretrained(folder)
        said["lora"] = mean_loss(model, held_out)
        with open(os.path.join(folder, "peft.json"), "w") as f:
            json.dump(said, f, indent=1)
        print(name, json.dumps(said), flush=True)


main()
