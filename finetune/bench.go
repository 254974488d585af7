package finetune

import (
	"fmt"
	"math/rand/v2"
	"time"

	"bhive/infer"
)

// BenchConfig says what a Bench trains. The zero value of a field is its default.
type BenchConfig struct {
	Rank      int // default 16, at most the model's R
	Length    int // tokens of an example, each of them trained; default 256, or the model's context where less
	Sequences int // examples of an optimizer step; default 4
}

// Bench measures optimizer steps of one tenant with every token trained: forward, losses, backward, correction, clipping and AdamW.
type Bench struct {
	trainer *Trainer
	lane    *Lane
	tokens  int
}

// OpenBench makes a trainer and its examples, of random tokens. Close frees them.
func OpenBench(m *infer.Model, c BenchConfig) (*Bench, error) {
	setDefault(&c.Rank, min(16, m.R()))
	setDefault(&c.Length, min(256, m.Config.MaxPositions))
	setDefault(&c.Sequences, 4)
	b := &Bench{tokens: c.Sequences * c.Length}
	var err error
	if b.trainer, err = NewTrainer(m, TrainerConfig{Lanes: 1, BatchTokens: b.tokens}); err != nil {
		return nil, fmt.Errorf("benchmark: %w", err)
	}
	r := rand.New(rand.NewPCG(1, 5))
	set := make([]Example, c.Sequences)
	for i := range set {
		for range c.Length {
			set[i].IDs = append(set[i].IDs, r.Int32N(int32(m.Config.Vocab)))
			set[i].Labels = append(set[i].Labels, r.Int32N(int32(m.Config.Vocab)))
		}
	}
	const endless = 1 << 30
	b.lane, err = b.trainer.Add(LaneOptions{Rank: c.Rank, Alpha: 2 * float64(c.Rank), Train: set, Batching: Batching{Examples: c.Sequences, Batches: 1},
		Schedule: Schedule{Kind: ScheduleConstant, Rate: 1e-3, Steps: endless}, Beta1: 0.9, Beta2: 0.999, Epsilon: 1e-8, Clip: 1,
		Correction: autoCorrection(m.Basis.Method)})
	if err != nil {
		b.Close()
		return nil, fmt.Errorf("benchmark: %w", err)
	}
	return b, nil
}

// Tokens of an optimizer step, all of them trained.
func (b *Bench) Tokens() int { return b.tokens }

// Step runs one optimizer step and returns how long it took.
func (b *Bench) Step() (time.Duration, error) {
	start := time.Now()
	for target := b.lane.pos.Step + 1; b.lane.pos.Step < target; {
		if _, err := b.trainer.Unit(); err != nil {
			return 0, err
		}
	}
	return time.Since(start), nil
}

// Close frees everything.
func (b *Bench) Close() { b.trainer.Close() }
