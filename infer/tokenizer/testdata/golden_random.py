"""Random texts and random ids through every tokenizer of testdata and the demo's, and through variants of them.

usage: golden_random.py TESTDATA_DIR DEMO_TOKENIZER.json OUT_DIR COUNT      (tokenizers 0.23)
writes NAME.random.jsonl (text, ids, ids_with_special, decoded, skipped; or ids, decoded, skipped of random ids)
and variants.jsonl ({name, base, patch, cases}): top-level fields of the base's JSON, and of its model, replaced by the patch's.
"""
import glob, json, os, random, sys
from tokenizers import Tokenizer

src, demo, out, count = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
rng = random.Random(7)
# Up to Unicode 15: both sides know these characters. Surrogates are none.
blocks = [(0x20, 0x7F)] * 6 + [(0x80, 0x250), (0x250, 0x370), (0x370, 0x530), (0x590, 0x700), (0x900, 0xE00), (0xE00, 0x1100), (0x1100, 0x1200), (0x1D00, 0x2000),
          (0x2000, 0x2070), (0x2070, 0x2C00), (0x3000, 0x3100), (0x3300, 0x3400), (0x4E00, 0x5000), (0xAC00, 0xAD00), (0xF900, 0xFB00), (0xFB00, 0xFE00), (0xFF00, 0xFFF0),
          (0x10280, 0x10400), (0x1D400, 0x1D800), (0x1F170, 0x1F700), (0x2F800, 0x2FA00), (0xE0100, 0xE0110)]
bits = [" ", "  ", "   ", "\n", "\r\n", "\n\n", "\t", "'s", "'S", "'\u017f", "'ll", "'LL", "'rE", "'", "9", "12", "345", "\u00b2", "\u0664", "a", "Z", "Hello", "world", "the", "THE", "e\u0301", "\u00e9",
        "-", "!", "...", "/", "//", "\u00a0", "\u3000", "\u2028", "\u0085", "\u200d", "\u02b0", "\u01c5", "\u0301\u0323", "\u1e9e", "\u0130", "\uac00\u11a8", "\u2581", "<0x41>", "<0xE9>", "<tool>", "<strip>", "<|im_end|>", "<|endoftext|>", "<s>", "</s>", "\U0001F600", "\u4f60\u597d", "\ufb01", "\u0345\u0399", "\x00", "\x1c", "\u0f43"]


def text():
    k = rng.random()
    if k < .4:
        return "".join(rng.choice(bits) for _ in range(rng.randrange(0, 20)))
    if k < .5:
        return rng.choice(bits) * rng.randrange(1, 60)
    if k < .7:
        return "".join(rng.choice(bits) if rng.random() < .5 else chr(rng.randrange(*rng.choice(blocks))) for _ in range(rng.randrange(0, 30)))
    return "".join(chr(rng.randrange(*rng.choice(blocks))) for _ in range(rng.randrange(0, 40)))


def case(t, s):
    e = t.encode(s, add_special_tokens=False)
    return {"text": s, "ids": e.ids, "ids_with_special": t.encode(s).ids, "decoded": t.decode(e.ids, skip_special_tokens=False), "skipped": t.decode(e.ids)}


def random_ids(t, hot):
    n = t.get_vocab_size() + 3
    ids = [rng.choice(hot) if rng.random() < .5 else rng.randrange(n) for _ in range(rng.randrange(0, 25))]
    return {"ids": ids, "decoded": t.decode(ids, skip_special_tokens=False), "skipped": t.decode(ids)}


files = {os.path.basename(f).split(".")[0]: f for f in sorted(glob.glob(src + "/*.tokenizer.json"))} | {"demo": demo}
for name, f in files.items():
    t = Tokenizer.from_file(f)
    with open(f"{out}/{name}.random.jsonl", "w") as w:
        for _ in range(count):
            w.write(json.dumps(case(t, text()), ensure_ascii=False) + "\n")
        for _ in range(count // 3):
            w.write(json.dumps(random_ids(t, list(range(300))), ensure_ascii=False) + "\n")

B = lambda **k: {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False} | k
S = lambda p, b, i=False: {"type": "Split", "pattern": p, "behavior": b, "invert": i}
Q = lambda *a: {"type": "Sequence", "pretokenizers": list(a)}
M = lambda s, c: {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": s, "split": c}
N = lambda *a: {"type": "Sequence", "normalizers": list(a)}
D = lambda *a: {"type": "Sequence", "decoders": list(a)}
T = lambda *a: {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": x, "type_id": 0}} if x else {"Sequence": {"id": "A", "type_id": 0}} for x in a], "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {x: {"id": x, "ids": [i], "tokens": [x]} for i, x in enumerate(a) if x}}
R = {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}
NULL = {"normalizer": None}
variants = [("split-" + b + str(i), "gpt2", {"pre_tokenizer": Q(S(p, b, i), B())}) for b in ("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous") for i in (False, True) for p in ({"Regex": r"\s+|\p{P}"},)]
variants += [("split-string-" + b, "gpt2", {"pre_tokenizer": Q(S({"String": "l"}, b), B(use_regex=True))}) for b in ("Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous")]
variants += [
    ("o200k", "gpt2", {"pre_tokenizer": Q(S({"Regex": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"}, "Isolated"), B())}),
    ("llama3-removed-inverted", "llama3", {"pre_tokenizer": Q(S({"Regex": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"}, "Removed", True), B())}),
    ("digits-together", "gpt2", {"pre_tokenizer": Q({"type": "Digits", "individual_digits": False}, B(use_regex=True))}),
    ("digits-after-bytes", "gpt2", {"pre_tokenizer": Q(B(use_regex=True), {"type": "Digits", "individual_digits": True})}),
    ("prefix-after-digits", "gpt2", {"pre_tokenizer": Q({"type": "Digits", "individual_digits": True}, B(use_regex=True, add_prefix_space=True))}),
    ("no-pre", "gpt2", {"pre_tokenizer": None}),
    ("nfd-lower-strip", "gpt2", {"normalizer": N({"type": "NFD"}, {"type": "Lowercase"}, {"type": "Strip", "strip_left": True, "strip_right": True})}),
    ("nfkc", "gpt2", {"normalizer": {"type": "NFKC"}}), ("nfkd", "gpt2", {"normalizer": {"type": "NFKD"}}),
    ("replace-regex", "gpt2", {"normalizer": {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": "-"}}),
    ("two-templates", "gpt2", {"post_processor": {"type": "Sequence", "processors": [B(), T("<|endoftext|>", None, "<|im_end|>")]}}),
    ("no-decoder", "gpt2", {"decoder": None}),
    ("unk-of-bytes", "gpt2", {"model": {"unk_token": "<|endoftext|>"}, "pre_tokenizer": None}), ("unk-fused", "gpt2", {"model": {"unk_token": "<|endoftext|>", "fuse_unk": True}, "pre_tokenizer": None}),
    ("suffix", "gpt2", {"model": {"end_of_word_suffix": "e"}}),
    ("spiece-ignore-merges", "sentencepiece", {"model": {"ignore_merges": True}}), ("spiece-no-bytes", "sentencepiece", {"model": {"byte_fallback": False}}), ("spiece-unk-apart", "sentencepiece", {"model": {"byte_fallback": False, "fuse_unk": False}}),
    ("spiece-template", "sentencepiece", {"post_processor": T("<unk>", "<s>", None, "</s>")}),
    ("spiece-strip-ends", "sentencepiece", {"decoder": D(R, {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 2, "stop": 0})}),
    ("spiece-no-fuse", "sentencepiece", {"decoder": D({"type": "ByteFallback"}, R, {"type": "Strip", "content": "a", "start": 1, "stop": 0})}),
]
variants += [(f"metaspace-{s}-{c}", "sentencepiece", NULL | {"pre_tokenizer": M(s, c), "decoder": M(s, c)}) for s in ("always", "first", "never") for c in (True, False)]
with open(f"{out}/variants.jsonl", "w") as w:
    for name, base, patch in variants:
        d = json.load(open(files[base]))
        d["model"] |= patch.get("model", {})
        d |= {k: v for k, v in patch.items() if k != "model"}
        t = Tokenizer.from_str(json.dumps(d))
        cases = [case(t, text()) for _ in range(count // 4)] + [random_ids(t, list(range(300))) for _ in range(count // 8)]
        w.write(json.dumps({"name": name, "base": base, "patch": patch, "cases": cases}, ensure_ascii=False) + "\n")
