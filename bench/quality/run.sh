#!/usr/bin/env bash
# The quality study on a machine with a GPU, in one go; see docs/quality.md. Run it in the repository's root.
#
#   QUALITY=PROGRAM BHIVE=PROGRAM MODEL=GGUF-or-folder-of-part.* DATA=FOLDER OUT=FOLDER bench/quality/run.sh
#
# Both programs are those of `make gpu-bundle`. DATA holds gsm8k_train.jsonl, gsm8k_test.jsonl and HumanEval.jsonl.gz (or .xz of the first two). The trainings here and PEFT's share the
# GPU, so each's limit is about the time of both; accuracy through the server comes after them. Seconds: LIMIT_HERE 390, LIMIT_PEFT 390, LIMIT_ACCURACY 55; 0 leaves a part out. PYTHON
# has torch, transformers, accelerate and peft. QUALITY_FLAGS, PEFT_FLAGS and ACCURACY_FLAGS are added. MPS=1 shares the GPU through nvidia-cuda-mps-control where that works. What is
# small lands in OUT; EARLIER=FOLDER of a cut run's quality.csv and peft.csv goes on from there; a run that is cut leaves its lines there.
set -u
work=$(mktemp -d)
out=${OUT:-$work/out}
mkdir -p "$out"
here=${LIMIT_HERE:-390} peft=${LIMIT_PEFT:-390} accuracy=${LIMIT_ACCURACY:-55}
python=${PYTHON:-/opt/torch/.venv/bin/python}
[ -x "$(command -v "$python")" ] || python=python3
device=${DEVICE:-cuda}
peft_pid=

keep() {
	[ -n "$peft_pid" ] && kill "$peft_pid" 2>/dev/null
	[ -n "${CUDA_MPS_PIPE_DIRECTORY:-}" ] && echo quit | nvidia-cuda-mps-control >/dev/null 2>&1
	cp "$work"/*.csv "$out/" 2>/dev/null
	tail -100 "$work/serve.log" >"$out/serve.log" 2>/dev/null
	rm -rf "$work/base" "$work/data" "$work/SmolLM2-135M-Instruct.Q4_1.gguf"
}
trap keep EXIT
trap 'exit 1' TERM INT

model=$MODEL
if [ -d "$MODEL" ]; then
	model=$work/SmolLM2-135M-Instruct.Q4_1.gguf
	cat "$MODEL"/part.* >"$model"
fi
data=$work/data
mkdir -p "$data"
cp "$DATA"/* "$data"/
for f in "$data"/*.xz; do [ -e "$f" ] && "$python" -c 'import lzma,sys; open(sys.argv[1][:-3],"wb").write(lzma.open(sys.argv[1]).read())' "$f"; done

ours() { # seconds, flags…
	local seconds=$1
	shift
	# shellcheck disable=SC2086 # flags are several words
	timeout -k 5 $((seconds + 10)) "$QUALITY" -model "$model" -data "$data" -out "$work" -device "$device" -limit "${seconds}s" "$@" ${QUALITY_FLAGS:-} 2>&1
}

if [ "${MPS:-0}" = 1 ]; then
	export CUDA_MPS_PIPE_DIRECTORY=$work/mps CUDA_MPS_LOG_DIRECTORY=$work/mps
	mkdir -p "$work/mps"
	if ! nvidia-cuda-mps-control -d || ! ours 30 -only base -train 16 -test 1 >/dev/null; then
		echo "# no MPS here: processes take turns"
		echo quit | timeout 10 nvidia-cuda-mps-control >/dev/null 2>&1
		unset CUDA_MPS_PIPE_DIRECTORY CUDA_MPS_LOG_DIRECTORY
	fi
fi

echo "== export"
ours 60 -only export | grep '^#'
began=$SECONDS
if [ "$peft" -gt 0 ]; then
	# shellcheck disable=SC2086
	PYTHONWARNINGS=ignore HF_HUB_OFFLINE=1 timeout -k 5 $((peft + 15)) "$python" bench/quality/peft_gsm8k.py "$work" --device "$device" --limit "$peft" ${EARLIER:+--earlier "$EARLIER/peft.csv"} ${PEFT_FLAGS:-} >"$out/peft.log" 2>"$out/peft.err" &
	peft_pid=$!
fi
if [ "$here" -gt 0 ]; then
	echo "== here"
	ours "$here" -only base,table ${EARLIER:+-earlier "$EARLIER/quality.csv"} | tee "$out/here.log"
	echo "# here: $((SECONDS - began)) s"
fi
if [ -n "$peft_pid" ]; then
	echo "== PEFT"
	wait "$peft_pid"
	peft_pid=
	cat "$out/peft.log"
	echo "# PEFT: at most $((SECONDS - began)) s"
	grep -E 'Error' "$out/peft.err" | sort | uniq -c | tail -5
fi
if [ "$accuracy" -gt 0 ]; then
	echo "== accuracy"
	# shellcheck disable=SC2086
	timeout -k 5 $((accuracy + 15)) "$python" bench/quality/accuracy.py "$BHIVE" "$model" "$data" "$work" --device "$device" --limit "$accuracy" ${ACCURACY_FLAGS:-} 2>&1
fi
