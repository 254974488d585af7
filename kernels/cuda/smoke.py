#!/usr/bin/env python3
"""The command as an operator runs it, on one device: serves, trains, swaps, refuses what does not fit, and ends.

  smoke.py BHIVE DEVICE [EXAMPLES]

BHIVE is the binary, DEVICE cpu or cuda, EXAMPLES examples/pirate.jsonl of the repository. It needs python3 alone. On a GPU it goes on to the
Llama-3-8B shape in a memory that training does not fit into. Each line says what was seen; the first thing that is not as it should be ends it
with exit status 1 and the server's log.
"""
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request

bhive, device = os.path.abspath(sys.argv[1]), sys.argv[2]
examples = sys.argv[3] if len(sys.argv) > 3 else os.path.join(os.path.dirname(__file__), "../../examples/pirate.jsonl")
began = time.monotonic()


def say(text):
    print(f"{time.monotonic() - began:6.1f} s  {text}", flush=True)


class Server:
    """bhive serve on a free port."""

    def __init__(self, data, *flags, model="demo"):
        self.model = model.replace("random:", "random-")
        self.log = open(os.path.join(data, "log"), "w+")
        command = [bhive, "serve", "--device", device, "--model", model, "--addr", "127.0.0.1:0", "--data", data, "--log-format", "json", *flags]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=self.log)
        self.url = self.line("serving")["address"]

    def lines(self):
        with open(self.log.name) as f:
            return [json.loads(s) for s in f if s.startswith("{")]

    def line(self, message):
        """The log's line with a message, as soon as it is there."""
        while True:
            for entry in self.lines():
                if entry["msg"] == message:
                    return entry
            if self.process.poll() is not None:
                sys.exit(f"the server ended with {self.process.returncode} before it said {message!r}:\n" + open(self.log.name).read())
            time.sleep(0.02)

    def check(self, good, what):
        if not good:
            sys.exit(f"not so: {what}\n" + open(self.log.name).read()[-4000:])
        say(what)

    def ask(self, path, body=None):
        """Status and answer."""
        q = urllib.request.Request(self.url + path, None if body is None else json.dumps(body).encode(), {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(q, timeout=60) as a:
                raw = a.read().decode()
                return a.status, json.loads(raw) if raw[:1] in "{[" else raw
        except urllib.error.HTTPError as e:
            return e.code, json.loads(e.read() or b"{}")

    def complete(self, model=None, prompt="Once upon a time", **more):
        return self.ask("/v1/completions", {"model": model or self.model, "prompt": prompt, "max_tokens": 24, "temperature": 0, **more})

    def text(self, model=None, **more):
        status, answer = self.complete(model, **more)
        if status != 200:
            self.check(False, f"a completion by {model}: {status} {answer}")
        return answer["choices"][0]["text"]

    def stream(self, model=None, **more):
        """A streamed completion's text, and whether it came to its end."""
        body = {"model": model or self.model, "prompt": "Once upon a time", "max_tokens": 24, "temperature": 0, "stream": True, **more}
        q = urllib.request.Request(self.url + "/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
        text = ""
        with urllib.request.urlopen(q, timeout=60) as a:
            for line in a:
                if line.startswith(b"data: [DONE]"):
                    return text, True
                if line.startswith(b"data: {"):
                    text += "".join(c["text"] for c in json.loads(line[6:])["choices"])
        return text, False

    def verb(self, *args):
        """A verb of the command against this server: exit status and output."""
        p = subprocess.run([bhive, *args], env={**os.environ, "BHIVE_SERVER": self.url}, capture_output=True, text=True, timeout=120)
        return p.returncode, p.stdout + p.stderr

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.check(self.process.wait(30) == 0, "SIGTERM ends it with 0")


def serves(data):
    s = Server(data)
    loaded = s.line("model loaded")["device"]
    s.check(("GPU" in loaded) == (device == "cuda"), f"serving on {loaded}")
    base = s.text()
    s.check(base and s.text() == base, f"the base says {base[:40]!r} twice")
    s.check(s.stream() == (base, True), "and as a stream")
    story = "One day a little bee went to the garden with her friend. " * 6
    s.text(prompt=story)
    cached = s.complete(prompt=story)[1]["usage"]["prompt_tokens_details"]["cached_tokens"]
    s.check(cached >= 48, f"the prefix cache gives {cached} tokens of a prompt again")
    schema = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 12}, "legs": {"type": "integer", "minimum": 0, "maximum": 8}}, "required": ["name", "legs"],
              "additionalProperties": False}
    status, answer = s.ask("/v1/chat/completions", {"messages": [{"role": "user", "content": "Describe a fox."}], "temperature": 1, "seed": 7, "max_tokens": 400,
                                                    "response_format": {"type": "json_schema", "json_schema": {"name": "animal", "schema": schema}}})
    text = answer["choices"][0]["message"]["content"] if status == 200 else str(answer)
    value = json.loads(text)
    s.check(set(value) == {"name", "legs"} and 0 <= value["legs"] <= 8, f"a JSON Schema holds: {text}")

    code, out = s.verb("tune", examples, "--name", "pirate", "--epochs", "5")
    s.check(code == 0 and "pirate@1 is live" in out, "an adapter is trained")
    first = s.text("pirate")
    tuned = s.verb("chat", "-m", "pirate", "-t", "0", "What is a wolf?")[1]
    s.check(tuned.startswith("Arr!"), f"the adapter says {tuned[:50]!r}")
    s.check(s.text() == base, "the base says what it said")

    # A version that becomes live beside streams of the one before.
    streams, ends = [], []
    for _ in range(4):
        streams.append(threading.Thread(target=lambda: ends.append(s.stream("pirate", max_tokens=400, ignore_eos=True)[1])))
        streams[-1].start()
    code, out = s.verb("tune", examples, "--name", "pirate", "--continue", "--max-steps", "3")
    s.check(code == 0 and "pirate@2 is live" in out, "its next version is trained beside streams and swapped in")
    for t in streams:
        t.join()
    s.check(ends == [True] * 4, "the streams came to their ends")
    s.check(s.text("pirate@1") == first, "the first version says what it said")

    # Everything in one batch.
    models = ["demo", "pirate", "pirate@1", "pirate:0.5", "pirate@1:0.5+pirate@2:0.5"] * 4
    batch = []
    threads = [threading.Thread(target=lambda m=m: batch.append(s.complete(m, temperature=0.8, n=2)[0])) for m in models]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    s.check(batch == [200] * len(models), f"{len(models)} requests for the base, two versions and two mixes at once")
    code, out = s.verb("adapters", "rollback", "pirate")
    s.check(code == 0 and s.text("pirate") == first, "rollback")
    code, out = s.verb("tune", examples, "--name", "wide", "--rank", "64", "--max-steps", "1")
    s.check(code == 0, "an adapter of rank 64")
    status, metrics = s.ask("/metrics")
    s.check(status == 200 and "vllm:lora_requests_info" in metrics, "metrics")
    s.stop()


def refuses(data):
    s = Server(data, "--kv-mib", "1", "--adapter-mib", "2", "--adapter-host-mib", "1")
    base = s.text()
    status, answer = s.complete("wide")
    s.check(status == 503 and answer["error"]["code"] == "no_adapter_memory", "an adapter that is larger than the memory for adapters: 503")
    status, answer = s.complete(prompt="bee " * 2000)
    s.check(status == 400 and answer["error"]["code"] == "context_length_exceeded", "a prompt that is longer than the KV cache: 400")
    done = []
    threads = [threading.Thread(target=lambda: done.append(s.complete(max_tokens=100, ignore_eos=True)[0])) for _ in range(24)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    s.check(done == [200] * 24, "24 requests take turns in a KV cache for a few of them")
    s.check(s.text() == base, "the base says what it said")
    s.process.kill()
    s.process.wait()
    again = Server(data)
    again.check(again.text() == base, "after SIGKILL it starts again from the same registry")
    again.stop()


def explains():
    """Without a GPU the binary says why, and serves on the CPU."""
    p = subprocess.run([bhive, "serve", "--device", "cuda"], env={**os.environ, "HOME": tempfile.gettempdir()}, capture_output=True, text=True, timeout=60)
    why = p.stderr.strip().splitlines()[-1]
    if p.returncode == 0 or "no GPU can be used" not in why:
        sys.exit(f"not so: without a GPU: {p.returncode}, {why}")
    say(why)
    with tempfile.TemporaryDirectory(prefix="bhive-smoke-") as data:
        s = Server(data, "--device", "auto")
        chosen = s.line("device chosen")
        s.check(chosen["device"] == "cpu" and s.text(), f"with --device auto it takes the CPU, and says why: {chosen['why']}")
        s.stop()


def squeezes(data):
    """The 8B shape with little memory left: one job fails, the server does not."""
    # A KV cache takes no more than twice what its sequences fill: of 256 with 8192 tokens it can fill a card of up to 512 GiB.
    flags = ["--basis", "kaiming", "--adapter-mib", "1024", "--adapter-host-mib", "1024", "--max-seqs", "256", "--max-context", "8192", "--train-memory", "layer"]
    s = Server(data, "--kv-mib", "2048", *flags, model="random:llama-3-8b")
    memory = s.line("memory")
    free = memory["free_mib"]
    s.check(len(s.text(ignore_eos=True)) > 0, f"the 8B shape serves, {free} MiB are free")
    s.stop()
    kv = memory["kv_mib"] + free - 900
    s = Server(data, "--kv-mib", str(kv), *flags, model="random:llama-3-8b")
    left = s.line("memory")["free_mib"]
    s.check(500 < left < 1000, f"a KV cache of {kv} MiB leaves {left} MiB")
    s.check(s.complete(ignore_eos=True)[0] == 200, f"with {left} MiB free it serves")
    code, out = s.verb("tune", examples, "--name", "big", "--rank", "64", "--max-steps", "1")
    s.check(code != 0 and re.search("memory", out, re.I), f"training does not fit, and says so: {out.strip().splitlines()[-1][:120]}")
    s.check(s.complete(ignore_eos=True)[0] == 200 and s.ask("/health")[0] == 200, "it goes on serving")
    s.stop()


with tempfile.TemporaryDirectory(prefix="bhive-smoke-") as data:
    serves(data)
    refuses(data)
if device == "cuda":
    with tempfile.TemporaryDirectory(prefix="bhive-smoke-") as data:
        squeezes(data)
elif not os.path.exists("/dev/nvidiactl"):
    explains()
say("all as it should be")
