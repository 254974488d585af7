#!/usr/bin/env bash
# Runs what make gpu-bundle packed, on a machine with a GPU. Each step has a limit of its own, and its log goes to $OUT (default: here).
#
#   run [STEP …]     default: ops infer finetune server smollm2 smoke sanitizer bench
#
#   ops        every op against kernels/cpu
#   infer      the engine: goldens of the demo model and the tiny architectures, laws, memory; then goldens and laws again with kernels whose sums depend on the batch
#   finetune   training in float32 and bfloat16: goldens, laws, jobs
#   server     the golden training runs through POST /adapters, in float32 and bfloat16
#   smollm2    SmolLM2's goldens, served, trained and trained through POST /adapters, where SMOLLM2 names a folder with the GGUF (or its pieces, part.*) and GOLDEN one with the references
#   smoke      the command itself: serve, train, swap, refuse what does not fit (needs python3)
#   sanitizer  compute-sanitizer's memcheck over the small sizes of every op, where it is installed; SANITIZE says which (a -test.run pattern of cuda.test)
#   racecheck  its racecheck, a family of kernels after another; RACE says which (RACE='prefill sample')
#   bench      bhive bench gpu $BENCH, with its table in $OUT/bench.json
#
# Seconds a step may take: LIMIT_OPS 200, LIMIT_INFER 120, LIMIT_FINETUNE 90 and LIMIT_SERVER 60 (each precision), LIMIT_SMOLLM2 60 (each run), LIMIT_SMOKE 90, LIMIT_SANITIZER 150,
# LIMIT_RACECHECK 60 (each family), LIMIT_BENCH 210. The whole table takes longer than that; `LIMIT_BENCH=540 run bench` has it alone. cuBLASLt is found through LD_LIBRARY_PATH.
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

step_ops() { limited "${LIMIT_OPS:-200}" "$out/ops.log" ./cuda.test -test.v; }

step_infer() {
	limited "${LIMIT_INFER:-120}" "$out/infer.log" env -C infer ../infer.test -device cuda -test.v -test.short
	grep -cE '^ *--- PASS' "$out/infer.log" | sed 's/$/ tests and subtests pass/; s/^/  /'
	limited "${LIMIT_INFER:-120}" "$out/infer-batches.log" env -C infer ../infer.test -device cuda -batch-invariant=false -test.v -test.short \
		-test.run '^Test(Demo|Tiny|ZeroB|BatchEquals|RankEmbedding|Captured|DeviceHolds|Save)'
	grep -hE 'worst difference' "$out/infer-batches.log" | sort | uniq -c | sort -rn | head -5
}

step_finetune() { precisely "${LIMIT_FINETUNE:-90}" finetune .; }

step_server() { precisely "${LIMIT_SERVER:-60}" server '^TestGoldenJobs$'; }

# precisely SECONDS PACKAGE PATTERN [LOG]: the package's tests in either precision.
precisely() {
	for precision in float32 bfloat16; do
		echo "  $2, $precision"
		limited "$1" "$out/${4:-$2}-$precision.log" env -C "$2" "../$2.test" -device cuda -precision $precision -test.v -test.run "$3"
	done
	grep -hE 'worst: |at most off|going on, the first' "$out/${4:-$2}"-*.log | head -24
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
	precisely "${LIMIT_SMOLLM2:-60}" finetune SmolLM2 smollm2-finetune
	precisely "${LIMIT_SMOLLM2:-60}" server SmolLM2 smollm2-server
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
# for them racecheck knows too little. A family a line: what it is called, what the names of its kernels have in common, and the smallest tests that launch them.
families() {
	cat <<'END'
norm               norm               ^Test(RowOps|NormBackward)$/^bfloat16$/^7$/^one$|^TestNormBackward$/^bfloat16$/^warps=false$/^7$
residual           residual           ^TestEpilogues$/^bfloat16$/^7$/^distinct$
mlp                mlp                ^TestEpilogues$/^bfloat16$/^7$/^distinct$
qkv                qkv                ^TestQKV$/^bfloat16$/^7$/^distinct$
qkv_backward       qkv_backward       ^TestQKVBackward$/^bfloat16$/^warps=false$/^7$
linear             linear_plain       ^TestLinear$/^float32$/^/^/83_45_11/^9$
linear32           linear32           ^TestLinear$/^bfloat16$/^invariant=true$/^/83_48_5/^17$
few                few16              ^TestLinear$/^bfloat16$/^invariant=false$/^lt=false$/83_48_5/^9$
linear_backward    linear_backward    ^TestLinearBackward$/^bfloat16$/^invariant=true$/88_48_8/^7$
prefill            prefill            ^TestAttention$/^bfloat16$/^invariant=true$/^warps=false$/(8_2_64|8_1_128)/^0$/^7$
decode             attention_decode   ^TestAttention$/^bfloat16$/^invariant=false$/^warps=false$/(8_2_64|8_1_128)/^0$/^decode3$/^16$
attention_backward attention_backward ^TestAttentionBackward$/^bfloat16$/^warps=true$/^7$
cross_entropy      cross_entropy      ^TestCrossEntropy$/^/^invariant=false$/(151_23|160_64)/^7$
shrink             shrink             ^TestExpandBackward$/^bfloat16$/^7$/^distinct$
gradient           gradient           ^TestExpandBackward$/^bfloat16$/^7$/^distinct$
adamw              adamw              ^TestAdamW$/^bfloat16$/^5$/^true$
grad_norm          grad_squares       ^TestAdamW$/^bfloat16$/^5$/^true$
gram               gram               ^TestGram$/^bfloat16$/^(7|133)$
sample             sample             ^TestSample$/^99$
END
}

step_racecheck() {
	local tool family kernels tests only=() log
	tool=$(sanitizer) || return
	while read -r family kernels tests <&3; do
		[[ " ${RACE:-$family} " == *" $family "* ]] || continue
		echo "  $family"
		log=$out/racecheck-$family.log
		# Where the tool can be told, it leaves the other kernels as they are.
		"$tool" --help 2>&1 | grep -q -e --kernel-regex && only=(--kernel-regex "kns=$kernels")
		limited "${LIMIT_RACECHECK:-60}" "$log" "$tool" --tool racecheck --racecheck-report analysis --error-exitcode 9 --print-limit 20 "${only[@]}" \
			./cuda.test -test.v -test.short -test.run "$tests" || grep '^=== RUN' "$log" | tail -1
		checked "$log"
	done 3< <(families)
}

step_bench() {
	# shellcheck disable=SC2086 # BENCH is several words
	limited "${LIMIT_BENCH:-210}" "$out/bench.log" ./bhive bench gpu ${BENCH:-} --json "$out/bench.json"
	cat "$out/bench.log"
}

for step in ${*:-ops infer finetune server smollm2 smoke sanitizer bench}; do
	echo "== $step"
	"step_$step"
done
exit $failed
