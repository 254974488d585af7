"""PEFT's LoRA and LoRA-FA on what `quality -only export` wrote: the same tokens in the same order, the same weights, batch, schedule, clipping and Adam.

usage: peft_gsm8k.py DIR [--device cuda] [--workers 4] [--limit SECONDS] [--seeds 3] [--only lora-r8,lorafa-r16,…] [--steps N] [--test N] [--earlier FILE] [--eager]

DIR holds data.json and base/. Each method and rank tries a rate and its neighbours on a ladder with the first seed, goes on where the best is at the edge, and trains the other seeds at
the best: all of them the first three rates first, so that a run that is cut is broad. Processes share the device. Lines are CSV, also in DIR/peft.csv, and are written as they come;
lines of # are checks.
"""
import argparse, importlib.util, math, multiprocessing, multiprocessing.connection, os, sys, time

LADDER = [2.5e-4, 5e-4, 1e-3, 2e-3, 3e-3, 5e-3, 8e-3, 1.2e-2, 2e-2, 3e-2, 5e-2]
FIRST = {"lora-r8": 3e-3, "lora-r16": 3e-3, "lorafa-r16": 5e-3, "lora-r32": 2e-3, "lorafa-r32": 3e-3, "lorafa-r64": 2e-3, "lorafa-r8": 8e-3, "lora-r4": 5e-3}  # in order of use
HEAD = "method,rank,seed,rate,loss,steps,seconds,trained"
CHECKS = [("check", "lora-r16", 8), ("check", "lorafa-r16", 3)]


def wanted(name, losses, seeds):
    """What is to be run of a method and rank, given the losses by (seed, rate): (urgency, seed, rate)."""
    at = LADDER.index(FIRST[name])
    out = [(0, 1, LADDER[at]), (0, 1, LADDER[at + 1]), (0, 1, LADDER[at - 1])]
    tried = {rate: loss if math.isfinite(loss) else math.inf for (seed, rate), loss in losses.items() if seed == 1}
    if any(rate not in tried for _, _, rate in out):
        return out
    best = min(tried, key=tried.get)
    i = LADDER.index(best)
    beside = [r for r in LADDER[max(0, i - 1) : i + 2] if r not in tried]
    return out + ([(1, 1, r) for r in beside] or [(2, s, best) for s in range(2, seeds + 1)])


class Plan:
    def __init__(self, names, seeds):
        self.names, self.seeds = names, seeds
        self.losses = {name: {} for name in names}
        self.begun = set()  # jobs that run, are done or have failed

    def keep(self, line):
        """Takes a line of an earlier run for done, where it is one."""
        v = line.split(",")
        if line.startswith("# check"):
            self.begun.update(CHECKS)
        elif v[0] == "base":
            self.begun.add(("base",))
        elif (name := "-r".join(v[:2])) in self.losses and len(v) == 8:
            seed, rate = int(v[2]), float(v[3])
            self.begun.add((name, seed, rate))
            self.losses[name][seed, rate] = float(v[4])
        else:
            return False
        return True

    def next(self, last):
        """The most urgent job, of the method and rank that a worker had last where there is one; None when nothing is left or what is left waits for others."""
        jobs = [(-1, 0, ("base",))] + [(1, 0, c) for c in CHECKS if c[1] in self.names]
        for k, name in enumerate(self.names):
            jobs += [(u, 1 + k, (name, seed, rate)) for u, seed, rate in wanted(name, self.losses[name], self.seeds)]
        jobs = [(u, j[0] != last, k, j) for u, k, j in jobs if j not in self.begun]
        return min(jobs, key=lambda x: x[:3])[3] if jobs else None


def work(o, graphs, pipe):
    """Does jobs until None comes; answers (line, loss), or an error and ends."""
    try:
        sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
        import torch
        from peft_training import Training

        torch.set_num_threads(o.threads)
        t = Training(o.dir, o.device, graphs, o.test)
        while job := pipe.recv():
            if job == ("base",):
                pipe.send((f"base,0,0,0,{t.held_out():.4f},0,0,0", None))
                continue
            name = job[1] if job[0] == "check" else job[0]
            method, rank = name.split("-r")[0], int(name.split("-r")[1])
            if job[0] == "check":
                pipe.send((t.check(method, rank, FIRST[name], min(job[2], o.steps)), None))
                continue
            loss, steps, seconds, trained = t.run(method, rank, job[1], job[2], o.steps)
            pipe.send((f"{method},{rank},{job[1]},{job[2]:g},{loss:.4f},{steps},{seconds:.1f},{trained}", loss))
    except Exception as e:
        import traceback

        traceback.print_exc()
        pipe.send((f"# a worker {'with' if graphs else 'without'} CUDA graphs has ended: {type(e).__name__}: {' '.join(str(e).split())[:300]}", "error"))


class Worker:
    def __init__(self, o, graphs):
        spawn = multiprocessing.get_context("spawn")
        self.pipe, other = spawn.Pipe()
        self.graphs, self.job, self.last = graphs, None, None
        self.process = spawn.Process(target=work, args=(o, graphs, other), daemon=True)
        self.process.start()
        other.close()

    def give(self, job):
        self.job, self.last = job, job[1] if job[0] == "check" else job[0]
        self.pipe.send(job)

    def answer(self):
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            return "# a worker is gone", "error"


def main():
    p = argparse.ArgumentParser()
    p.add_argument("dir")
    p.add_argument("--device", default="cuda")
    p.add_argument("--workers", type=int, default=4)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--limit", type=float, default=1e9)
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--steps", type=int, default=1 << 30)
    p.add_argument("--test", type=int, default=1 << 30)
    p.add_argument("--only", default=",".join(FIRST))
    p.add_argument("--earlier", help="peft.csv of a run that was cut: its lines are kept, and not run again")
    p.add_argument("--eager", action="store_true", help="no CUDA graphs; also what a worker whose graph fails goes on with")
    o = p.parse_args()
    missing = [m for m in ("torch", "transformers", "peft", "accelerate") if importlib.util.find_spec(m) is None]
    if missing:
        sys.exit("peft_gsm8k.py: not there: " + ", ".join(missing))
    began, plan = time.time(), Plan(o.only.split(","), o.seeds)
    workers = [Worker(o, o.device == "cuda" and not o.eager) for _ in range(o.workers)]
    with open(os.path.join(o.dir, "peft.csv"), "w") as f:

        def say(line):
            print(line, flush=True)
            print(line, file=f, flush=True)

        say(HEAD)
        for line in open(o.earlier).read().splitlines() if o.earlier else []:
            if plan.keep(line):
                say(line)
        while time.time() - began < o.limit:
            for w in workers:
                if w.job is None and (job := plan.next(w.last)):
                    plan.begun.add(job)
                    w.give(job)
            busy = [w for w in workers if w.job]
            if not busy:
                break
            ready = multiprocessing.connection.wait([w.pipe for w in busy], timeout=0.5)
            for w in [w for w in busy if w.pipe in ready]:
                (line, loss), job = w.answer(), w.job
                say(line)
                w.job = None
                if loss == "error":
                    workers.remove(w)
                    if w.graphs:  # once more, without
                        plan.begun.discard(job)
                        workers.append(Worker(o, False))
                elif loss is not None:
                    plan.losses[job[0]][job[1], job[2]] = loss
        else:
            print("peft_gsm8k.py: out of time; the lines so far are whole", flush=True)
    for w in workers:
        w.process.kill()
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
