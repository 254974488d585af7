"""Trainings with PEFT's LoRA and LoRA-FA on what `quality -only export` wrote; peft_gsm8k.py decides which.

The modules, their forward and their backward are PEFT's. Round them, without another result: all examples are on the device before the first step; a step's forward, backward and
clipping are one CUDA graph for each padded width; B's (and A's) of one shape lie in one tensor, so that the optimizer has few to go through.
"""
import contextlib, json, math, os, time

import torch
import transformers.models.llama.modeling_llama as llama
from accelerate.utils.imports import is_bf16_available
from peft import LoraConfig, get_peft_model
from peft.optimizers import create_lorafa_optimizer
from transformers import AutoModelForCausalLM

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-6
WIDTH = 64  # steps are padded to multiples, each with a graph of its own

# Padding is on the right, where causal attention does not see it: no mask is needed. While a graph is captured Transformers would build one, since it cannot look at the positions.
llama.create_causal_mask = lambda *a, **k: None


class Batch:
    """Some examples: ids [n, width], at [k] (the places in ids that predict a trained token), target [k] (−100 fills up), count []."""

    def __init__(self, examples, width, k, device):
        ids = [e["ids"] + [0] * (width - len(e["ids"])) for e in examples]
        at = [i * width + j for i, e in enumerate(examples) for j, l in enumerate(e["labels"]) if l >= 0]
        target = [l for e in examples for l in e["labels"] if l >= 0]
        fill = max(0, k - len(at))
        self.width, on = width, lambda x, t: torch.tensor(x, dtype=t, device=device)
        self.ids, self.at, self.target = on(ids, torch.int64), on(at + list(range(fill)), torch.int64), on(target + [-100] * fill, torch.int64)
        self.count = on(len(target), torch.float32)

    def tensors(self):
        return [self.ids, self.at, self.target, self.count]


def widest(examples, to=WIDTH):
    return (max(len(e["ids"]) for e in examples) + to - 1) // to * to


class Training:
    def __init__(self, folder, device, graphs, test):
        self.device, self.graphs = device, graphs
        with open(os.path.join(folder, "data.json")) as f:
            self.data = json.load(f)
        self.base = AutoModelForCausalLM.from_pretrained(os.path.join(folder, "base"), dtype=torch.bfloat16, attn_implementation="sdpa").to(device)
        self.base.config.use_cache = False
        test = sorted(self.data["test"][:test], key=lambda e: len(e["ids"]))
        self.test = [Batch(test[i : i + 32], widest(test[i : i + 32], 16), 0, device) for i in range(0, len(test), 32)]
        self.places, self.orders = {}, {}  # of a width the most trained tokens of a step; of a seed its steps
        for order in self.data["orders"].values():
            for examples in self.steps_of(order):
                w = widest(examples)
                self.places[w] = max(self.places.get(w, 0), sum(l >= 0 for e in examples for l in e["labels"]))
        self.spot = None

    def steps_of(self, order):
        size = self.data["batch"]
        return [[self.data["train"][i] for i in order[s * size : (s + 1) * size]] for s in range(self.data["steps"])]

    def steps(self, seed):
        if seed not in self.orders:
            self.orders[seed] = [Batch(e, widest(e), self.places[widest(e)], self.device) for e in self.steps_of(self.data["orders"][str(seed)])]
        return self.orders[seed]

    def sum_of_losses(self, model, b):
        with torch.autocast(self.device, dtype=torch.bfloat16, cache_enabled=False):
            hidden = model.model(input_ids=b.ids, use_cache=False).last_hidden_state
            logits = model.lm_head(hidden.flatten(0, 1).index_select(0, b.at))
        return torch.nn.functional.cross_entropy(logits.float(), b.target, reduction="sum")

    @torch.no_grad()
    def held_out(self):
        """Nats a trained token of the test examples, with the adapter if there is one."""
        model = self.wrapped.base_model.model if self.spot else self.base
        sums = [(self.sum_of_losses(model, b), b.count) for b in self.test]
        return (sum(l for l, _ in sums) / sum(n for _, n in sums)).item()

    def adapt(self, method, rank):
        """Wraps the base for all runs of a method and rank."""
        if self.spot == (method, rank):
            return
        if self.spot:
            self.captured, self.inputs = {}, {}
            self.base = self.wrapped.unload()
        self.spot, self.rank = (method, rank), rank
        self.wrapped = get_peft_model(self.base, LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, bias="none", task_type="CAUSAL_LM", target_modules=TARGETS))
        self.layers = [m for m in self.wrapped.modules() if hasattr(m, "reset_lora_parameters")]
        a, b = [m.lora_A["default"].weight for m in self.layers], [m.lora_B["default"].weight for m in self.layers]
        self.stacks = []
        self.a_places, self.b_places = self.stack(a), self.stack(b)
        self.trained = b
        if method == "lora":
            self.trained = a + b
        else:
            for p in a:
                p.requires_grad_(False)
        places = (self.a_places if method == "lora" else []) + self.b_places
        self.moved = [self.stacks[i] for i in dict.fromkeys(i for i, _ in places)]
        for s in self.moved:
            s.grad = torch.zeros_like(s)
        self.gradients = [self.stacks[i].grad[j] for i, j in places]
        self.captured, self.inputs = {}, {}
        if self.graphs:
            self.pool = torch.cuda.graph_pool_handle()

    def stack(self, parameters):
        """Lays float32 parameters of one shape into one tensor; where each lies: (stack, index)."""
        by_shape, places = {}, {}
        for k, p in enumerate(parameters):
            by_shape.setdefault(tuple(p.shape), []).append(k)
        for shape, members in by_shape.items():
            s = torch.nn.Parameter(torch.empty(len(members), *shape, dtype=torch.float32, device=self.device))
            for j, k in enumerate(members):
                parameters[k].data, places[k] = s.data[j], (len(self.stacks), j)
            self.stacks.append(s)
        return [places[k] for k in range(len(parameters))]

    def compute(self, b):
        """The clipped gradient of the mean over a batch's trained tokens."""
        loss = self.sum_of_losses(self.wrapped.base_model.model, b) / b.count
        torch._foreach_copy_(self.gradients, torch.autograd.grad(loss, self.trained))
        torch.nn.utils.clip_grad_norm_(self.moved, 1.0)

    def backward(self, b, graphs):
        if not graphs:
            return self.compute(b)
        if b.width not in self.captured:
            self.capture(b)
        torch._foreach_copy_(self.inputs[b.width].tensors()[:3], b.tensors()[:3])
        self.inputs[b.width].count.copy_(b.count)
        self.captured[b.width].replay()

    def capture(self, b):
        own = Batch([], 0, 0, self.device)
        own.width, (own.ids, own.at, own.target, own.count) = b.width, [t.clone() for t in b.tensors()]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # loads the kernels, which a capture must not
            self.compute(own)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            self.compute(own)
        self.captured[b.width], self.inputs[b.width] = graph, own

    def run(self, method, rank, seed, rate, steps=1 << 30, graphs=None, own_step=True):
        """One training from the start: held-out loss, steps, seconds, trained values."""
        began = time.time()
        self.adapt(method, rank)
        torch.manual_seed(seed)
        with torch.no_grad():
            for m in self.layers:
                m.reset_lora_parameters("default", True)
        if method == "lora":
            optimizer = AdamW(self, rate)
        else:
            optimizer = StackedLoraFA(self) if own_step else PeftLoraFA(self, rate)
        batches = self.steps(seed)[:steps]
        for s, b in enumerate(batches):
            self.backward(b, self.graphs if graphs is None else graphs)
            optimizer.step(rate * 0.5 * (1 + math.cos(math.pi * s / len(batches))))
        loss = self.held_out()
        return loss, len(batches), time.time() - began, sum(p.numel() for p in self.trained)

    def check(self, method, rank, rate, steps):
        """One line: what graphs, and for LoRA-FA the stacked step, do to a short training. Nothing is expected."""
        cases = {"without a graph": dict(graphs=False)}
        if self.graphs:
            cases = {"by CUDA graphs": {}} | cases
        if method == "lorafa":
            cases["by PEFT's own LoraFAOptimizer.step"] = dict(graphs=False, own_step=False)
        losses = [f"{self.run(method, rank, 1, rate, steps, **c)[0]:.5f} {name}" for name, c in cases.items()]
        return f"# check: {method} of rank {rank}, {steps} steps at {rate:g}: held-out loss " + ", ".join(losses)


class AdamW:
    def __init__(self, t, rate):
        self.adam = torch.optim.AdamW(t.moved, lr=rate, betas=(BETA1, BETA2), eps=EPSILON, weight_decay=0.0, fused=t.device == "cuda")

    def step(self, rate):
        self.adam.param_groups[0]["lr"] = rate
        self.adam.step()


class StackedLoraFA:
    """PEFT's LoraFAOptimizer.step on all B's of a shape at once; (A·Aᵀ)⁻¹, which does not change, is computed once: of a full-rank matrix the inverse is the pseudoinverse."""

    def __init__(self, t):
        gram = {}
        for i in {i for i, _ in t.a_places}:
            a = t.stacks[i].data
            gram[i] = torch.linalg.inv(a @ a.mT + 1e-8 * torch.eye(t.rank, device=t.device))
        inverses = {}  # of a stack of B's, in its order
        for (ia, ja), (ib, _) in zip(t.a_places, t.b_places):
            inverses.setdefault(ib, []).append(gram[ia][ja])
        self.scale = 1 / t.layers[0].scaling["default"] ** 2
        self.all = [(t.stacks[i], torch.stack(inv), torch.zeros_like(t.stacks[i]), torch.zeros_like(t.stacks[i])) for i, inv in inverses.items()]
        self.cast = torch.autocast(t.device, dtype=torch.bfloat16, cache_enabled=False) if is_bf16_available() else contextlib.nullcontext()
        self.n = 0

    @torch.no_grad()
    def step(self, rate):
        self.n += 1
        step = rate * math.sqrt(1 - BETA2**self.n) / (1 - BETA1**self.n)
        for b, inverse, m, v in self.all:
            with self.cast:
                g = self.scale * (b.grad @ inverse)
            g = g.to(b.dtype)
            m.mul_(BETA1).add_(g, alpha=1 - BETA1)
            v.mul_(BETA2).addcmul_(g, g, value=1 - BETA2)
            b.addcdiv_(m, v.sqrt().add_(EPSILON), value=-step)


class PeftLoraFA:
    """PEFT's own, to check the above."""

    def __init__(self, t, rate):
        for p, g in zip(t.trained, t.gradients):
            p.grad = g
        self.trained, self.peft = t.trained, create_lorafa_optimizer(t.wrapped, r=t.rank, lora_alpha=2 * t.rank, lr=rate)

    def step(self, rate):
        self.peft.param_groups[0]["lr"] = rate
        self.peft.step()
