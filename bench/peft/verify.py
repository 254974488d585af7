"""Holds bhive's PEFT files against PEFT itself, on the demo model: make test-peft.

usage: verify.py BHIVE MODEL_DIR ADAPTERS_DIR

Starts `BHIVE serve` in float32 with A's imported from ADAPTERS_DIR/adapter_one, and
  1. imports adapter_one and adapter_two, which fit exactly: PEFT with the original files gives the logits that the server gives;
  2. imports adapter_plain, which is projected, trains a new adapter and makes a sum of two: exported again, PEFT gives the server's logits;
  3. counts the keys that PEFT does not know, or misses, when it loads an export: there must be none.
Compared are the log probabilities of every token of several texts.
"""
import io, json, os, subprocess, sys, tarfile, tempfile, time, urllib.request, warnings

import torch
from peft import PeftModel
from peft.utils.save_and_load import load_peft_weights, set_peft_model_state_dict
from transformers import AutoModelForCausalLM, AutoTokenizer

BHIVE, MODEL, ADAPTERS = sys.argv[1:]
TOLERANCE = 2e-4  # of a log probability; the logits differ by float32's rounding in another order of sums
TEXTS = ["What is a wolf?", "Once upon a time there was a little fox who lived in the woods.", "The ship sailed over the sea and", "Arr! Two and two are four."]


def call(url, body=None, kind="application/json"):
    data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
    q = urllib.request.Request(url, data, {"Content-Type": kind} if data is not None else {})
    with urllib.request.urlopen(q) as a:
        return a.read()


def start(data):
    p = subprocess.Popen([BHIVE, "serve", "--addr", "127.0.0.1:0", "--data", data, "--weights", "float32", "--log-format", "json", "--basis", "import",
                          "--basis-from", os.path.join(ADAPTERS, "adapter_one")], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    for line in p.stderr:
        entry = json.loads(line) if line.startswith("{") else {}
        if entry.get("msg") == "serving":
            import threading
            threading.Thread(target=p.stderr.read, daemon=True).start()
            return p, entry["address"]
    sys.exit("the server did not start")


def packed(name):
    b = io.BytesIO()
    with tarfile.open(fileobj=b, mode="w") as t:
        for f in ("adapter_config.json", "adapter_model.safetensors"):
            t.add(os.path.join(ADAPTERS, name, f), f)
    return b.getvalue()


def here(url, model, ids):
    r = json.loads(call(url + "/v1/completions", {"model": model, "prompt": ids, "max_tokens": 0, "echo": True, "logprobs": 1}))
    return torch.tensor(r["choices"][0]["logprobs"]["token_logprobs"][1:])


def there(model, ids):
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].float()
    return torch.log_softmax(logits[:-1], -1).gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]


def peft(folder):
    base = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("error", UserWarning)  # PEFT warns of keys that it misses
        model = PeftModel.from_pretrained(base, folder)
        result = set_peft_model_state_dict(model, load_peft_weights(folder))
    lost = list(result.unexpected_keys) + [k for k in result.missing_keys if "lora_" in k]
    if lost:
        sys.exit(f"{folder}: PEFT does not know, or misses, {lost[:5]}")
    return model.eval()


def main():
    tok = AutoTokenizer.from_pretrained(MODEL)
    texts = [tok.encode(t, add_special_tokens=False) for t in TEXTS]
    failed = False

    def compare(what, model, name, url):
        nonlocal failed
        worst = max((here(url, name, ids) - there(model, ids)).abs().max().item() for ids in texts)
        base = max((here(url, name, ids) - here(url, "demo", ids)).abs().max().item() for ids in texts)
        bad = worst > TOLERANCE or base < 10 * TOLERANCE
        failed |= bad
        print(f"{'FAIL' if bad else 'ok  '}  {what}: differs by {worst:.2e} in log probability (from the base by {base:.2f})", flush=True)

    with tempfile.TemporaryDirectory() as tmp:
        p, url = start(os.path.join(tmp, "data"))
        try:
            for name in ("adapter_one", "adapter_two", "adapter_plain"):
                r = json.loads(call(f"{url}/adapters/{name}/import", packed(name), "application/x-tar"))
                assert r["exact"] == (name != "adapter_plain"), r
                if r["exact"]:
                    compare(f"{name}: PEFT's own files, imported", peft(os.path.join(ADAPTERS, name)), name, url)
            call(f"{url}/adapters", {"name": "trained", "rank": 4, "max_steps": 8, "examples": [{"prompt": t, "completion": " Arr, matey!"} for t in TEXTS]})
            while json.loads(call(f"{url}/adapters/trained"))["live_version"] is None:
                time.sleep(0.2)
            call(f"{url}/adapters/sum/compose", {"parts": [{"model": "adapter_one", "weight": 0.7}, {"model": "trained", "weight": 0.5}]})
            for name in ("adapter_one", "adapter_plain", "trained", "sum"):
                folder = os.path.join(tmp, name)
                with tarfile.open(fileobj=io.BytesIO(call(f"{url}/adapters/{name}/export"))) as t:
                    t.extractall(folder, filter="data")
                compare(f"{name}: exported, in PEFT", peft(folder), name, url)
        finally:
            p.terminate()
            p.wait()
    sys.exit(failed)


main()
