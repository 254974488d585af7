"""Accuracy by greedy decoding through a server, of the base and of adapters that the server trains: GSM8K answers, two classes of lines of this project's source, HumanEval.

usage: accuracy.py BHIVE MODEL DATA OUT [--device cuda] [--train 2000] [--problems 200] [--lines 1000] [--epochs 1] [--limit SECONDS] [--skip humaneval]

BHIVE is the program, MODEL what `serve --model` takes, DATA holds gsm8k_{train,test}.jsonl and HumanEval.jsonl.gz. Run it in the repository's root: the two classes are lines of Go
from server/ and from kernels/. Standard library only. Programs that the model writes for HumanEval are run, each in a process of its own with limits. Lines are CSV, also in OUT/accuracy.csv.
"""
import argparse, concurrent.futures, gzip, hashlib, json, os, pathlib, re, resource, socket, subprocess, sys, tempfile, threading, time, urllib.error, urllib.request

END_OF_FUNCTION = ["\ndef ", "\nclass ", "\nif __name__", "\nprint(", "\nassert "]


class Server:
    def __init__(self, o):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.data = tempfile.TemporaryDirectory()
        self.log = open(os.path.join(o.out, "serve.log"), "w")
        command = [o.bhive, "serve", "--model", o.model, "--device", o.device, "--data", self.data.name, "--addr", f"127.0.0.1:{port}", "--kv-mib", str(o.kv_mib), "--train-tokens", str(o.train_tokens)]
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)
        for _ in range(600):
            try:
                urllib.request.urlopen(self.url + "/ready", timeout=5).read()
                return
            except OSError:
                if self.process.poll() is not None:
                    sys.exit("accuracy.py: the server has ended; see serve.log")
                time.sleep(0.1)
        sys.exit("accuracy.py: the server is not ready after a minute")

    def call(self, path, body=None, kind="application/json"):
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": kind})
        try:
            with urllib.request.urlopen(request, timeout=300) as a:
                return json.loads(a.read())
        except urllib.error.HTTPError as e:
            raise RuntimeError(f"{path}: {e.code} {e.read()[:300]!r}") from None

    def chat(self, model, text, tokens):
        return self.call("/v1/chat/completions", {"model": model, "messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": tokens})["choices"][0]["message"]["content"] or ""

    def complete(self, model, text, tokens, stop):
        return self.call("/v1/completions", {"model": model, "prompt": text, "temperature": 0, "max_tokens": tokens, "stop": stop})["choices"][0]["text"]

    def train(self, name, rank, examples, epochs):
        """Returns when the adapter is live."""
        body = "\n".join(json.dumps({"prompt": p, "completion": c}) for p, c in examples).encode()
        self.call(f"/adapters?name={name}&rank={rank}&epochs={epochs}&batch_size=16&seed=1", body, "application/x-ndjson")
        while True:
            job = self.call(f"/adapters/{name}/jobs")
            job = (job.get("data") or job.get("jobs"))[0]
            state = job.get("state") or job.get("status")
            if state == "succeeded":
                return
            if state in ("failed", "cancelled"):
                raise RuntimeError(f"training {name}: {job}")
            time.sleep(0.2)

    def close(self):
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.log.close()
        self.data.cleanup()


def rows(path, n=None):
    with (gzip.open(path, "rt") if path.endswith(".gz") else open(path)) as f:
        return [json.loads(line) for line in f][:n]


def number(text):
    m = re.fullmatch(r"-?\d+(\.\d+)?", text.replace(",", "").strip("$ .").strip())
    return float(m.group()) if m else None


def answer(text):
    """The number after ####, and otherwise the last one; with whether it was after ####."""
    if "####" in text:
        m = re.search(r"-?[\d,]+(?:\.\d+)?", text.split("####")[1])
        if m:
            return number(m.group()), True
    found = re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)
    return (number(found[-1]), False) if found else (None, False)


def source_lines(n):
    """n training and 200 test questions: does a line of Go come from server/ or from kernels/? As many of each; a line is in one set only."""
    kinds = {}
    for name in ("server", "kernels"):
        lines = set()
        for path in pathlib.Path(name).rglob("*.go"):
            if not path.name.endswith("_test.go"):
                lines |= {l.strip() for l in path.read_text().splitlines() if 30 <= len(l.strip()) <= 120}
        kinds[name] = lines
    both = kinds["server"] & kinds["kernels"]
    by_hash = lambda s: hashlib.sha256(s.encode()).hexdigest()
    kinds = {k: sorted(v - both, key=by_hash) for k, v in kinds.items()}
    ask = lambda l: f"Does this line of Go come from a web server or from numeric kernels? Answer with one word, server or kernels.\n\n{l}"
    pick = lambda a, b: sorted(((ask(l), k) for k, v in kinds.items() for l in v[a:b]), key=lambda e: by_hash(e[0]))
    return pick(100, 100 + n // 2), pick(0, 100)


def passes(problem, body):
    """Runs a completion with the problem's tests."""
    program = problem["prompt"] + body + "\n" + problem["test"] + f"\ncheck({problem['entry_point']})\n"

    def limits():
        resource.setrlimit(resource.RLIMIT_CPU, (5, 5))
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run([sys.executable, "-I", "-c", program], cwd=folder, env={}, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=8, preexec_fn=limits)
        except subprocess.TimeoutExpired:
            return False
    return done.returncode == 0


def main():
    p = argparse.ArgumentParser()
    for name in ("bhive", "model", "data", "out"):
        p.add_argument(name)
    p.add_argument("--device", default="cuda")
    p.add_argument("--train", type=int, default=2000)
    p.add_argument("--problems", type=int, default=200)
    p.add_argument("--lines", type=int, default=1000)
    p.add_argument("--epochs", type=float, default=1)
    p.add_argument("--tokens", type=int, default=256)
    p.add_argument("--ranks", default="16,64")
    p.add_argument("--kv-mib", type=int, default=8192)
    p.add_argument("--train-tokens", type=int, default=4096)
    p.add_argument("--limit", type=float, default=1e9)
    p.add_argument("--skip", default="")
    o = p.parse_args()
    began, skip = time.time(), o.skip.split(",")
    out = open(os.path.join(o.out, "accuracy.csv"), "w")

    def say(line):
        print(line, flush=True)
        print(line, file=out, flush=True)

    def out_of_time():
        print("accuracy.py: out of time; the lines so far are whole", flush=True)
        server.process.kill()
        os._exit(0)

    server = Server(o)
    timer = threading.Timer(max(1, o.limit - (time.time() - began)), out_of_time)
    timer.daemon = True
    timer.start()
    try:
        base = server.call("/v1/models")["data"][0]["id"]
        pool = concurrent.futures.ThreadPoolExecutor(64)
        train, test = rows(os.path.join(o.data, "gsm8k_train.jsonl"), o.train), rows(os.path.join(o.data, "gsm8k_test.jsonl"), o.problems)
        lines_train, lines_test = source_lines(o.lines)
        lines_test = lines_test[: o.problems]
        code = rows(os.path.join(o.data, "HumanEval.jsonl.gz"))[: o.problems] if "humaneval" not in skip else []
        say("task,model,right,of,detail,seconds")

        def gsm8k(model):
            t = time.time()
            texts = list(pool.map(lambda r: server.chat(model, r["question"], o.tokens), test))
            got = [(answer(x), number(r["answer"].split("####")[1])) for x, r in zip(texts, test)]
            say(f"gsm8k,{model},{sum(a == b for (a, _), b in got)},{len(got)},{sum(marked for (_, marked), _ in got)} answered after ####,{time.time() - t:.1f}")

        def two_classes(model):
            t = time.time()
            texts = list(pool.map(lambda e: server.chat(model, e[0], 8), lines_test))
            word = lambda x: next(iter(re.findall(r"server|kernel", x.lower())), "")
            valid = sum(bool(word(x)) for x in texts)
            right = sum(word(x) != "" and k.startswith(word(x)) for x, (_, k) in zip(texts, lines_test))
            say(f"two classes,{model},{right},{len(texts)},{valid} named a class,{time.time() - t:.1f}")

        def human_eval(model):
            t = time.time()
            bodies = list(pool.map(lambda r: server.complete(model, r["prompt"], o.tokens, END_OF_FUNCTION), code))
            with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as few:
                right = sum(few.map(passes, code, bodies))
            say(f"humaneval,{model},{right},{len(code)},,{time.time() - t:.1f}")
            return right

        gsm8k(base)
        two_classes(base)
        forgets = bool(code) and human_eval(base) > 0  # what a base gets none of, an adapter cannot forget
        for rank in o.ranks.split(","):
            t = time.time()
            server.train(f"gsm8k-r{rank}", rank, [(r["question"], r["answer"]) for r in train], o.epochs)
            print(f"# gsm8k-r{rank} is live after {time.time() - t:.1f} s", flush=True)
            gsm8k(f"gsm8k-r{rank}")
            t = time.time()
            server.train(f"lines-r{rank}", rank, lines_train, o.epochs)
            print(f"# lines-r{rank} is live after {time.time() - t:.1f} s", flush=True)
            two_classes(f"lines-r{rank}")
            if forgets:
                human_eval(f"gsm8k-r{rank}")
    finally:
        timer.cancel()
        server.close()
    out.close()


if __name__ == "__main__":
    main()
