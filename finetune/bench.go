package finetune

import (
	"fmt"
	"math/rand/v2"
	"sort"
	"sync"
	"time"

	"bhive/infer"
	"bhive/kernels"
)

// BenchConfig says what a Bench trains. The zero value of a field is its default.
type BenchConfig struct {
	Rank      int    // default 16, at most the model's R
	Length    int    // tokens of an example, each of them trained; default 256, or the model's context where less
	Sequences int    // examples of a tenant's optimizer step; default 4
	Tenants   int    // that train in one batch; default 1
	Plan      string // as TrainerConfig.MemoryPlan
	Ordinary  bool   // what an ordinary LoRA costs: x kept, dA and an A of each projection's own; of one tenant, plan none
}

// Bench measures optimizer steps with every token trained: forward, losses, backward, correction, clipping and AdamW.
type Bench struct {
	trainer *Trainer
	lora    *ordinary // nil where LoRA-FA is measured
	lanes   []*Lane
	tokens  int
	norm    float64 // of the last gradient

	mu       sync.Mutex
	enqueued []time.Time // the units that the engine ran
	steps    []int       // how many of them were there when an optimizer step of all tenants ended
}

var _ infer.Background = (*Bench)(nil)

// OpenBench makes a trainer and its examples, of random tokens. Close frees them.
func OpenBench(m *infer.Model, c BenchConfig) (*Bench, error) {
	setDefault(&c.Rank, min(16, m.R()))
	setDefault(&c.Length, min(256, m.Config.MaxPositions))
	setDefault(&c.Sequences, 4)
	setDefault(&c.Tenants, 1)
	if c.Ordinary {
		c.Tenants, c.Plan = 1, infer.RecomputeNone.String()
	}
	b := &Bench{tokens: c.Tenants * c.Sequences * c.Length}
	var err error
	if c.Ordinary {
		if b.lora, err = newOrdinary(m, b.tokens, c.Rank); err != nil {
			return nil, fmt.Errorf("benchmark: %w", err)
		}
		own := *m
		own.Backend = b.lora
		m = &own
	}
	t := TrainerConfig{Lanes: c.Tenants, BatchTokens: b.tokens, Seqs: max(64, c.Tenants*c.Sequences), MemoryPlan: c.Plan}
	if b.trainer, err = NewTrainer(m, t); err != nil {
		b.Close()
		return nil, fmt.Errorf("benchmark: %w", err)
	}
	r := rand.New(rand.NewPCG(1, 5))
	for tenant := range c.Tenants {
		set := make([]Example, c.Sequences)
		for i := range set {
			for range c.Length {
				set[i].IDs = append(set[i].IDs, r.Int32N(int32(m.Config.Vocab)))
				set[i].Labels = append(set[i].Labels, r.Int32N(int32(m.Config.Vocab)))
			}
		}
		const endless = 1 << 30
		o := LaneOptions{Rank: c.Rank, Alpha: 2 * float64(c.Rank), Train: set, Batching: Batching{Examples: c.Sequences, Batches: 1},
			Schedule: Schedule{Kind: ScheduleConstant, Rate: 1e-3, Steps: endless}, Beta1: 0.9, Beta2: 0.999, Epsilon: 1e-8, Clip: 1,
			Correction: autoCorrection(m.Basis.Method)}
		if tenant == c.Tenants-1 {
			o.Report = b.report
		}
		lane, err := b.trainer.Add(o)
		if err != nil {
			b.Close()
			return nil, fmt.Errorf("benchmark: %w", err)
		}
		b.lanes = append(b.lanes, lane)
	}
	return b, nil
}

// Plan is the memory plan in force.
func (b *Bench) Plan() string { return b.trainer.MemoryPlan() }

// Tokens of an optimizer step of all tenants, all of them trained.
func (b *Bench) Tokens() int { return b.tokens }

// GradNorm is the last optimizer step's gradient norm, of one of the tenants.
func (b *Bench) GradNorm() float64 { return b.norm }

// Step runs one optimizer step of each tenant, all in one batch, and returns how long it took.
func (b *Bench) Step() (time.Duration, error) {
	start := time.Now()
	last := b.lanes[len(b.lanes)-1]
	for target := last.pos.Step + 1; last.pos.Step < target; {
		more, err := b.trainer.Unit()
		if err != nil {
			return 0, err
		}
		if !more {
			return 0, fmt.Errorf("benchmark: %w after %d steps", ErrDiverged, last.pos.Step)
		}
	}
	return time.Since(start), nil
}

// report takes note of the last tenant's optimizer step, with which the others' have ended.
func (b *Bench) report(r Report) {
	b.norm = r.GradNorm
	b.mu.Lock()
	defer b.mu.Unlock()
	if n := len(b.enqueued); n > 0 { // else nobody enqueues: see Step
		b.steps = append(b.steps, n)
	}
}

// Ready, Next and Enqueue let an engine run the steps, one after the other without end.
func (b *Bench) Ready() bool { return true }

// Next is infer.Background's.
func (b *Bench) Next() (infer.Unit, bool) { return b.trainer.Next() }

// Enqueue is infer.Background's.
func (b *Bench) Enqueue(after kernels.Event) kernels.Event {
	b.mu.Lock()
	b.enqueued = append(b.enqueued, time.Now())
	b.mu.Unlock()
	return b.trainer.Enqueue(after)
}

// Err is the device's failure.
func (b *Bench) Err() error { return b.trainer.err }

// Rate is the tokens a second between two moments, by the units enqueued then: steps may be longer than what lies between. A step's units count alike.
func (b *Bench) Rate(from, to time.Time) float64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	last := len(b.steps) - 1
	if last < 1 {
		return 0
	}
	before := func(t time.Time) int {
		return sort.Search(len(b.enqueued), func(i int) bool { return !b.enqueued[i].Before(t) })
	}
	step := float64(b.steps[last]-b.steps[0]) / float64(last)
	return float64(before(to)-before(from)) / step * float64(b.tokens) / to.Sub(from).Seconds()
}

// Close frees everything.
func (b *Bench) Close() {
	if b.trainer != nil {
		b.trainer.Close()
	}
	if b.lora != nil {
		b.lora.close()
		b.lora = nil
	}
}
