package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"time"

	"bhive/adapters"
	"bhive/finetune"
	"bhive/infer"
)

// benchCmd measures this machine.
type benchCmd struct {
	modelFlags
	Rank    int      `help:"Rank of the adapters." default:"16" least:"1"`
	Rows    int      `help:"Rows of each A." default:"64" least:"1"`
	Steps   int      `help:"Decode steps of each kind." default:"64" least:"1"`
	Prefill int      `help:"Tokens of the prompt, and of each example of training." default:"256" least:"1"`
	Batches []int    `help:"Sizes of the decode batches." default:"1,8" least:"1"`
	Only    []string `help:"What to measure: ${enum}; default: all." enum:"model,training,http,grammar" placeholder:"PART"`
	JSON    bool     `name:"json" help:"Print JSON instead of a table."`
}

// benchResult is what benchCmd measured. Rates are a second's; times are medians in nanoseconds.
type benchResult struct {
	Model    string `json:"model"`
	Weights  string `json:"weights"`
	Device   string `json:"device"`
	CPU      string `json:"cpu"`
	Threads  int    `json:"threads"`
	Version  string `json:"version"`
	Date     string `json:"date"`
	Ceilings struct {
		Read float64 `json:"read_bytes"` // a plain read loop
		FMA  float64 `json:"fma_flops"`  // register-only multiply-adds
	} `json:"ceilings"`
	Steps    *infer.BenchResult `json:"steps,omitempty"`
	Training *trainingResult    `json:"training,omitempty"`
	HTTP     *httpResult        `json:"http,omitempty"`
	Grammar  *grammarResult     `json:"grammar,omitempty"`
}

// trainingResult compares optimizer steps and prefills that took turns.
type trainingResult struct {
	Tokens          int           `json:"tokens"` // of an optimizer step, each of them trained
	Step            time.Duration `json:"step_ns"`
	TokensPerSecond float64       `json:"tokens_per_second"`
	Prefill         float64       `json:"prefill_tokens_per_second"`
	Ratio           float64       `json:"ratio"` // median of the rounds' ratios
}

// Run measures and prints.
func (c *benchCmd) Run(ctx context.Context, log *slog.Logger) error {
	if err := checkBench(c.Rank, c.Rows, append([]int{c.Steps, c.Prefill}, c.Batches...)); err != nil {
		return err
	}
	l, err := c.load(ctx, log, benchBasis(c.Rows), nil)
	if err != nil {
		return err
	}
	defer l.close()
	r := benchResult{Model: l.name, Weights: c.Weights, Device: l.backend.Info().Device, CPU: cpuName(), Threads: c.Threads, Version: version, Date: time.Now().Format(time.DateOnly)}
	if r.Threads == 0 {
		r.Threads = runtime.GOMAXPROCS(0)
	}
	r.Ceilings.Read, r.Ceilings.FMA = ceilings(r.Threads)
	if c.wants("model") {
		steps, err := infer.Bench(ctx, l.model, infer.BenchConfig{Batches: c.Batches, Rank: c.Rank, Steps: c.Steps, Prefill: c.Prefill})
		if err != nil {
			return err
		}
		r.Steps = &steps
		again, _ := ceilings(r.Threads)
		r.Ceilings.Read = (r.Ceilings.Read + again) / 2
	}
	if c.wants("training") {
		if r.Training, err = c.training(ctx, l.model); err != nil {
			return err
		}
	}
	if c.wants("http") {
		b := benchHTTP{l: l, clients: 8, prompt: 96, tokens: 64, rounds: 15}
		if room := l.model.Positions; b.prompt+b.tokens+1 > room {
			return fmt.Errorf("benchmark: a context of %d tokens, the model has %d", b.prompt+b.tokens+1, room)
		}
		h, err := b.run(ctx)
		if err != nil {
			return err
		}
		r.HTTP = &h
	}
	if c.wants("grammar") {
		b := benchGrammar{l: l, streams: 8, tokens: 64, rounds: 7}
		g, err := b.run(ctx)
		if err != nil {
			return err
		}
		r.Grammar = &g
	}
	if c.JSON {
		out := json.NewEncoder(os.Stdout)
		out.SetIndent("", "  ")
		return out.Encode(r)
	}
	return r.print(c.Rank)
}

// checkBench refuses adapters that the basis could not hold, and numbers of nothing.
func checkBench(rank, rows int, numbers []int) error {
	if rank < 1 || rank > rows {
		return fmt.Errorf("benchmark: rank %d is not from 1 to the %d rows of A", rank, rows)
	}
	for _, n := range numbers {
		if n < 1 {
			return fmt.Errorf("benchmark: batches and numbers of tokens and steps must be at least 1, not %d", n)
		}
	}
	return nil
}

// benchBasis makes a basis that no registry keeps.
func benchBasis(rows int) basisOf {
	return func(ctx context.Context, hash string, g adapters.Geometry, _ func() (*infer.Model, error)) (*adapters.Basis, error) {
		return adapters.NewBasis(ctx, adapters.BasisConfig{Method: adapters.Orthonormal, R: rows, Geometry: g, BaseHash: hash})
	}
}

func (c *benchCmd) wants(part string) bool {
	for _, p := range c.Only {
		if p == part {
			return true
		}
	}
	return len(c.Only) == 0
}

// training lets optimizer steps and prefills take turns.
func (c *benchCmd) training(ctx context.Context, m *infer.Model) (*trainingResult, error) {
	b, err := finetune.OpenBench(m, finetune.BenchConfig{Rank: c.Rank, Length: c.Prefill})
	if err != nil {
		return nil, err
	}
	defer b.Close()
	r := &trainingResult{Tokens: b.Tokens()}
	var steps []time.Duration
	var prefills, ratios []float64
	prefill := func() (float64, error) {
		p, err := infer.Bench(ctx, m, infer.BenchConfig{Batches: []int{}, Prefill: c.Prefill, Prefills: 3})
		return p.Prefill.TokensPerSecond, err
	}
	before, err := prefill()
	if err != nil {
		return nil, err
	}
	const rounds = 5
	for round := -1; round < rounds; round++ { // the first one warms up
		step, err := b.Step()
		if err != nil {
			return nil, err
		}
		after, err := prefill()
		if err != nil {
			return nil, err
		}
		if round >= 0 {
			steps, prefills = append(steps, step), append(prefills, after)
			ratios = append(ratios, float64(r.Tokens)/step.Seconds()/((before+after)/2))
		}
		before = after
	}
	r.Step, r.Prefill, r.Ratio = median(steps), median(prefills), median(ratios)
	r.TokensPerSecond = float64(r.Tokens) / r.Step.Seconds()
	return r, nil
}
