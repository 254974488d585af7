"""Inverse frequencies by the formulas of Transformers 5.24 (modeling_rope_utils.py), in NumPy's float32.

usage: rope.py > rope.json      (numpy)
"""
import json, math
import numpy as np

f32 = np.float32


def default(dim, base):
    return f32(1) / np.power(f32(base), np.arange(0, dim, 2).astype(f32) / f32(dim))


def linear(dim, base, factor):
    return default(dim, base) / f32(factor), 1.0


def llama3(dim, base, factor, low, high, old):
    inv = default(dim, base)
    wavelen = f32(2 * math.pi) / inv
    out = np.where(wavelen > f32(old / low), inv / f32(factor), inv)
    smooth = (f32(old) / wavelen - f32(low)) / f32(high - low)
    smoothed = (1 - smooth) * out / f32(factor) + smooth * out
    medium = ~(wavelen < f32(old / high)) & ~(wavelen > f32(old / low))
    return np.where(medium, smoothed, out), 1.0


def yarn(dim, base, factor, old, fast=32, slow=1, mscale=None, mscale_all=None, attention=None, truncate=True):
    get = lambda s, m=1: 1.0 if s <= 1 else 0.1 * m * math.log(s) + 1.0
    if attention is None:
        attention = get(factor, mscale) / get(factor, mscale_all) if mscale and mscale_all else get(factor)
    at = lambda rot: dim * math.log(old / (rot * 2 * math.pi)) / (2 * math.log(base))
    low, high = at(fast), at(slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    pos = np.power(f32(base), np.arange(0, dim, 2).astype(f32) / f32(dim))
    keep = 1 - np.clip((np.arange(dim // 2).astype(f32) - f32(low)) / f32(high - low), 0, 1)
    return f32(1) / (f32(factor) * pos) * (1 - keep) + f32(1) / pos * keep, attention


def case(rope, result):
    return {"rope": rope, "inv": [float(x) for x in np.asarray(result[0], f32)], "factor": float(f32(result[1]))}


print(json.dumps([
    case({"Type": "default", "Dim": 64, "Theta": 10000}, (default(64, 10000), 1)),
    case({"Type": "default", "Dim": 128, "Theta": 1e6}, (default(128, 1e6), 1)),
    case({"Type": "linear", "Dim": 64, "Theta": 10000, "Factor": 3}, linear(64, 10000, 3)),
    case({"Type": "llama3", "Dim": 128, "Theta": 500000, "Factor": 8, "LowFreqFactor": 1, "HighFreqFactor": 4, "OriginalMaxPositions": 8192}, llama3(128, 500000, 8, 1, 4, 8192)),
    case({"Type": "llama3", "Dim": 64, "Theta": 500000, "Factor": 32, "LowFreqFactor": 1, "HighFreqFactor": 4, "OriginalMaxPositions": 8192}, llama3(64, 500000, 32, 1, 4, 8192)),
    case({"Type": "yarn", "Dim": 128, "Theta": 1e6, "Factor": 4, "OriginalMaxPositions": 32768, "BetaFast": 32, "BetaSlow": 1}, yarn(128, 1e6, 4, 32768)),
    case({"Type": "yarn", "Dim": 64, "Theta": 10000, "Factor": 40, "OriginalMaxPositions": 4096, "BetaFast": 32, "BetaSlow": 1, "MScale": 1.0, "MScaleAllDim": 0.707},
         yarn(64, 10000, 40, 4096, mscale=1.0, mscale_all=0.707)),
    case({"Type": "yarn", "Dim": 64, "Theta": 150000, "Factor": 32, "OriginalMaxPositions": 4096, "BetaFast": 16, "BetaSlow": 2, "AttentionFactor": 1.5, "NoTruncate": True},
         yarn(64, 150000, 32, 4096, 16, 2, attention=1.5, truncate=False)),
]))
