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

// stateRows are the rows of logits that a trainer's samples need.
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
	n := infer.StateBytes(m, c.BatchTokens, stateRows) + infer.SaveBytes(m, c.BatchTokens, p)
	act := int64(m.Backend.Info().Activation.Size())
	for _, g := range gradients(m, c.BatchTokens) {
		n += int64(g.rows) * int64(g.cols) * act
	}
	n += int64(c.blocks()+c.Seqs) * int64(c.BlockTokens) * m.KVTokenBytes()
	train, serve := c.buckets()
	return n + 4*int64(kernels.RecordWords(train)+kernels.RecordWords(serve)+c.Lanes+c.BatchTokens)
}

// blocks are the most KV blocks of one sequence.
func (c TrainerConfig) blocks() int { return ceilDiv(c.BatchTokens, c.BlockTokens) }

// buckets are those of training passes and of samples.
func (c TrainerConfig) buckets() (train, serve kernels.Bucket) {
	train = kernels.Bucket{Tokens: c.BatchTokens, Seqs: c.Seqs, Blocks: c.blocks(), MaxQuery: c.BatchTokens, Training: true}
	serve = train
	serve.Training, serve.Rows = false, stateRows
	return train, serve
}

// MemoryPlan is the plan in force: none, mlp or layer.
func (t *Trainer) MemoryPlan() string { return t.save.Plan.String() }
