#!/usr/bin/env bash
# Runs what make gpu-bundle packed, on a machine with a GPU. Each step has a limit of its own, and its log goes to $OUT (default: here).
#
#   run [STEP …]     default: ops infer finetune smollm2 smoke sanitizer bench
#
#   ops        every op against kernels/cpu
#   infer      the engine: goldens of the demo model and the tiny architectures, laws, memory; then goldens and laws again with kernels whose sums depend on the batch
#   finetune   training in float32 and bfloat16: goldens, laws, jobs (BHIVE_SMOLLM2=1: SmolLM2's too, from ../models and ../../shared)
#   smollm2    SmolLM2's goldens, where SMOLLM2 names a folder with the GGUF (or its pieces, part.*) and GOLDEN one with the references
#   smoke      the command itself: serve, train, swap, refuse what does not fit (needs python3)
#   sanitizer  compute-sanitizer's memcheck over the small sizes of every op, where it is installed; SANITIZE says which (a -test.run pattern of cuda.test)
#   racecheck  its racecheck over a choice of them; RACE says which
#   bench      bhive bench gpu $BENCH, with its table in $OUT/bench.json
#
# Seconds a step may take: LIMIT_OPS 90, LIMIT_INFER 120, LIMIT_FINETUNE 90 (each precision), LIMIT_SMOLLM2 60, LIMIT_SMOKE 90, LIMIT_SANITIZER 150,
# LIMIT_RACECHECK 100, LIMIT_BENCH 210. The whole table takes longer than that; `LIMIT_BENCH=540 run bench` has it alone. cuBLASLt is found through LD_LIBRARY_PATH.
set -u
cd "$(dirname "$0")"
here=$PWD
out=${OUT:-$here}
failed=0

# limited SECONDS LOG COMMAND …: the command's output goes to the log, and what became of it to the terminal.
limited() {
	local seconds=$1 log=$2 began=$SECONDS code
	shift 2
	timeout --kill-after=10 "$seconds" "$@" >"$log" 2>&1
	code=$?
	case $code in
	0) echo "  passes in $((SECONDS - began)) s" ;;
	124 | 137) echo "  ran past its $seconds s" ;;
	*) echo "  fails with $code after $((SECONDS - began)) s" ;;
	esac
	if [ $code != 0 ]; then
		failed=1
		grep -E '^ *--- FAIL|_test.go:|^panic|ERROR SUMMARY|Invalid|^FAIL' "$log" | head -40
	fi
	return $code
}

step_ops() { limited "${LIMIT_OPS:-90}" "$out/ops.log" ./cuda.test -test.v; }

step_infer() {
	limited "${LIMIT_INFER:-120}" "$out/infer.log" env -C infer ../infer.test -device cuda -test.v -test.short
	grep -cE '^ *--- PASS' "$out/infer.log" | sed 's/$/ tests and subtests pass/; s/^/  /'
	limited "${LIMIT_INFER:-120}" "$out/infer-batches.log" env -C infer ../infer.test -device cuda -batch-invariant=false -test.v -test.short \
		-test.run '^Test(Demo|Tiny|ZeroB|BatchEquals|RankEmbedding|Captured|DeviceHolds|Save)'
	grep -hE 'worst difference' "$out/infer-batches.log" | sort | uniq -c | sort -rn | head -5
}

step_finetune() {
	for precision in float32 bfloat16; do
		echo "  $precision"
		limited "${LIMIT_FINETUNE:-90}" "$out/finetune-$precision.log" env -C finetune ../finetune.test -device cuda -precision $precision -test.v
	done
}

step_smollm2() {
	if [ -z "${SMOLLM2:-}" ] || [ -z "${GOLDEN:-}" ]; then
		echo "  SMOLLM2 and GOLDEN are not set"
		return
	fi
	local model=$SMOLLM2
	if ls "$SMOLLM2"/part.* >/dev/null 2>&1; then
		model=$here/SmolLM2-135M-Instruct.Q4_1.gguf
		cat "$SMOLLM2"/part.* >"$model"
	fi
	export BHIVE_SMOLLM2_MODEL BHIVE_SMOLLM2_GOLDEN
	BHIVE_SMOLLM2_MODEL=$(realpath "$model") BHIVE_SMOLLM2_GOLDEN=$(realpath "$GOLDEN")
	limited "${LIMIT_SMOLLM2:-60}" "$out/smollm2.log" env -C infer ../infer.test -device cuda -test.v -test.run SmolLM2
	limited "${LIMIT_SMOLLM2:-60}" "$out/smollm2-batches.log" env -C infer ../infer.test -device cuda -batch-invariant=false -test.v -test.run SmolLM2BFloat16
	grep -hE 'worst difference|--- SKIP|_test.go.*no references' "$out/smollm2.log" "$out/smollm2-batches.log" | head -20
}

step_smoke() {
	limited "${LIMIT_SMOKE:-90}" "$out/smoke.log" python3 smoke.py ./bhive cuda pirate.jsonl
	cat "$out/smoke.log"
}

# sanitizer finds compute-sanitizer.
sanitizer() {
	command -v compute-sanitizer || ls -d /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | tail -1 | grep . || {
		echo "  compute-sanitizer is not installed" >&2
		return 1
	}
}

# checked says what a run under it saw, and how long each test took.
checked() {
	grep 'SUMMARY' "$1"
	grep -E '^--- (PASS|FAIL)' "$1" | sed 's/^--- /  /'
}

step_sanitizer() {
	local tool
	tool=$(sanitizer) || return
	limited "${LIMIT_SANITIZER:-150}" "$out/sanitizer.log" "$tool" --error-exitcode 9 --print-limit 20 ./cuda.test -test.v -test.short -test.run "${SANITIZE:-.}"
	checked "$out/sanitizer.log"
}

# Races are looked for in shared memory, in the kernels that order their accesses by barriers of a block or a warp: of copies by the tensor unit and what waits
# for them racecheck knows too little.
step_racecheck() {
	local tool
	tool=$(sanitizer) || return
	limited "${LIMIT_RACECHECK:-100}" "$out/racecheck.log" "$tool" --tool racecheck --racecheck-report analysis --error-exitcode 9 --print-limit 20 \
		./cuda.test -test.v -test.short -test.run "${RACE:-$races}"
	checked "$out/racecheck.log"
}
races='^Test(RowOps|Epilogues|QKV|ExpandBackward|NormBackward|MLPBackward|QKVBackward|AdamW|Gram)$/^bfloat16|^TestSample$|^Test(Linear|CrossEntropy)$/^float32'
races+='|^Test(Attention|LinearBackward)$/^bfloat16/invariant=true|^TestAttentionBackward$/^bfloat16/warps=true'

step_bench() {
	# shellcheck disable=SC2086 # BENCH is several words
	limited "${LIMIT_BENCH:-210}" "$out/bench.log" ./bhive bench gpu ${BENCH:-} --json "$out/bench.json"
	cat "$out/bench.log"
}

for step in ${*:-ops infer finetune smollm2 smoke sanitizer bench}; do
	echo "== $step"
	"step_$step"
done
exit $failed
