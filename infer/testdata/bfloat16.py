"""How far Transformers' own logits in bfloat16 are from the float32 references of the tiny checkpoints, on a CPU.

usage: bfloat16.py [TINY_DIR]      (torch 2.11.0, transformers 5.17.0)

Prints, for each checkpoint and attention, the worst position's largest difference as a share of its (max - min); and of twenty other prompts, against
float32 in torch, the worst and the mean of the same.
"""
import glob, os, sys
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

torch.set_grad_enabled(False)
torch.set_num_threads(1)


def load(path, dtype, attention):
    return AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation=attention).eval()


def off(model, ids, want):
    got = model(input_ids=ids).logits[0].float()
    return float(((got - want).abs().amax(-1) / (want.amax(-1) - want.amin(-1))).max())


for path in sorted(glob.glob(os.path.join(sys.argv[1] if len(sys.argv) > 1 else os.path.join(os.path.dirname(__file__), "tiny"), "*"))):
    golden = load_file(os.path.join(path, "golden.safetensors"))
    exact = load(path, torch.float32, "eager")
    torch.manual_seed(0)
    others = [torch.randint(0, 512, (1, 61)) for _ in range(20)]
    wants = [exact(input_ids=ids).logits[0] for ids in others]
    for attention in "eager", "sdpa":
        m = load(path, torch.bfloat16, attention)
        more = [off(m, ids, want) for ids, want in zip(others, wants)]
        print(f"{os.path.basename(path):18} {attention:6} {off(m, golden['ids'].long()[None], golden['logits']):.4f}, "
              f"of other prompts {max(more):.4f}, in the mean {sum(more) / len(more):.4f}")
