#!/usr/bin/env bash
# Runs what make gpu-bundle packed, on a machine with a GPU: op tests, goldens and laws, the benchmark. Logs go to $OUT (default: here).
# cuBLASLt is found through LD_LIBRARY_PATH.
set -u
cd "$(dirname "$0")"
out=${OUT:-$PWD}
./cuda.test >"$out/ops.log" 2>&1 && echo "ops pass" || { echo "ops fail"; grep -E '^ *--- FAIL|_test.go' "$out/ops.log" | head -40; }
(cd infer && ../infer.test -device cuda -test.v >"$out/infer.log" 2>&1) && echo "engine passes" || { echo "engine fails"; grep -E '^ *--- FAIL|_test.go' "$out/infer.log" | head -40; }
for p in float32 bfloat16; do
  (cd finetune && BHIVE_SMOLLM2=1 ../finetune.test -device cuda -precision $p -test.v >"$out/finetune-$p.log" 2>&1) && echo "training in $p passes" ||
    { echo "training in $p fails"; grep -E '^ *--- FAIL|_test.go' "$out/finetune-$p.log" | head -40; }
done
./bhive bench gpu | tee "$out/bench.log"
