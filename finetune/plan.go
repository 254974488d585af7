package finetune

import (
	"fmt"
	"slices"
	"strings"

	"bhive/infer"
	"bhive/kernels"
)

// planAuto leaves the choice of a memory plan to what is free.
const planAuto = "auto"

// stateRows are the rows of logits that a trainer's samples need at most.
const stateRows = 2 * maxSamplePrompts

func validPlan(name string) error {
	if name != planAuto && !slices.Contains(infer.SavePlans, name) {
		return fmt.Errorf("trainer: memory_plan must be auto, %s, is %q", strings.Join(infer.SavePlans, ", "), name)
	}
	return nil
}

// plan is the configured plan, or for auto the first whose trainer fits seven eighths of what is free, and where none does the last: an
// eighth is left for lanes, for scratch memory and for what serving takes later.
func (c TrainerConfig) plan(m *infer.Model, free int64) infer.SavePlan {
	if i := slices.Index(infer.SavePlans, c.MemoryPlan); i >= 0 {
		return infer.SavePlan(i)
	}
	for p := infer.RecomputeNone; p < infer.RecomputeLayer; p++ {
		if c.Bytes(m, p) <= free/8*7 {
			return p
		}
	}
	return infer.RecomputeLayer
}

// Bytes is the device memory of a trainer with that plan, without its lanes.
func (c TrainerConfig) Bytes(m *infer.Model, p infer.SavePlan) int64 {
	train, serve := c.buckets()
	return infer.TrainingBytes(m, c.memory(p)) + 4*int64(kernels.RecordWords(train)+kernels.RecordWords(serve)+c.Lanes+c.BatchTokens)
}

// memory of passes and samples.
func (c TrainerConfig) memory(p infer.SavePlan) infer.TrainingConfig {
	train, serve := c.buckets()
	return infer.TrainingConfig{Plan: p, Tokens: train.Tokens, BlockTokens: c.BlockTokens, Blocks: c.blocks(train),
		SampleTokens: serve.Tokens, SampleRows: serve.Rows, SampleBlocks: c.blocks(serve)}
}

// blocks are the most KV blocks of a bucket's sequences together.
func (c TrainerConfig) blocks(b kernels.Bucket) int {
	return (b.Tokens + b.Seqs*(c.BlockTokens-1)) / c.BlockTokens
}

// buckets are those of training passes and of samples. Samples go through in groups: a few of the longest, or many short ones.
func (c TrainerConfig) buckets() (train, serve kernels.Bucket) {
	bucket := func(tokens, seqs int) kernels.Bucket {
		return kernels.Bucket{Tokens: tokens, Seqs: seqs, Blocks: ceilDiv(tokens, c.BlockTokens), MaxQuery: tokens}
	}
	train, serve = bucket(c.BatchTokens, c.Seqs), bucket(min(c.BatchTokens, 4*maxSampleTokens), min(c.Seqs, stateRows))
	train.Training, serve.Rows = true, stateRows
	return train, serve
}

// MemoryPlan is the plan in force: none, mlp or layer.
func (t *Trainer) MemoryPlan() string { return t.mem.Save.Plan.String() }
