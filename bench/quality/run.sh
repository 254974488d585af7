#!/usr/bin/env bash
# The quality study on a machine with a GPU, in one go: trainings here, PEFT's, and accuracy through the server; see docs/quality.md. Run it in the repository's root.
#
#   QUALITY=PROGRAM BHIVE=PROGRAM MODEL=GGUF-or-folder-of-part.* DATA=FOLDER OUT=FOLDER bench/quality/run.sh
#
# Both programs are those of `make gpu-bundle`. DATA holds gsm8k_train.jsonl, gsm8k_test.jsonl and HumanEval.jsonl.gz (or .xz of the first two). Seconds of each part: LIMIT_HERE 150,
# LIMIT_PEFT 90, LIMIT_ACCURACY 50. PYTHON has torch, transformers and peft. QUALITY_FLAGS, PEFT_FLAGS and ACCURACY_FLAGS are added. What is small lands in OUT.
set -u
work=$(mktemp -d)
out=${OUT:-$work}
python=${PYTHON:-/opt/torch/.venv/bin/python}
[ -x "$python" ] || python=python3
model=$MODEL
if [ -d "$MODEL" ]; then
	model=$work/SmolLM2-135M-Instruct.Q4_1.gguf
	cat "$MODEL"/part.* >"$model"
fi
data=$work/data
mkdir -p "$data"
cp "$DATA"/* "$data"/
for f in "$data"/*.xz; do [ -e "$f" ] && "$python" -c 'import lzma,sys; open(sys.argv[1][:-3],"wb").write(lzma.open(sys.argv[1]).read())' "$f"; done
device=${DEVICE:-cuda}

echo "== here"
# shellcheck disable=SC2086 # flags are several words
timeout -k 5 $((${LIMIT_HERE:-150} + 10)) "$QUALITY" -model "$model" -data "$data" -out "$work" -device "$device" -limit "${LIMIT_HERE:-150}s" ${QUALITY_FLAGS:-} 2>&1 | tee "$out/here.log"
cp "$work/quality.csv" "$out/" 2>/dev/null
echo "== PEFT"
# shellcheck disable=SC2086
PYTHONWARNINGS=ignore HF_HUB_OFFLINE=1 timeout -k 5 $((${LIMIT_PEFT:-90} + 15)) "$python" bench/quality/peft_gsm8k.py "$work" --device "$device" --limit "${LIMIT_PEFT:-90}" ${PEFT_FLAGS:-} 2>"$out/peft.err"
tail -c 1500 "$out/peft.err" | grep -E 'Error|error' | tail -5
cp "$work/peft.csv" "$out/" 2>/dev/null
echo "== accuracy"
# shellcheck disable=SC2086
timeout -k 5 $((${LIMIT_ACCURACY:-50} + 15)) "$python" bench/quality/accuracy.py "$BHIVE" "$model" "$data" "$work" --device "$device" --limit "${LIMIT_ACCURACY:-50}" ${ACCURACY_FLAGS:-} 2>&1
cp "$work/accuracy.csv" "$out/" 2>/dev/null
tail -100 "$work/serve.log" >"$out/serve.log" 2>/dev/null
rm -rf "$work"
