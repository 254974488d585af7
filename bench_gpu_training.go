package main

import (
	"fmt"
	"math"
	"strings"
	"time"

	"bhive/finetune"
	"bhive/infer"
	"bhive/kernels/cuda"
)

// trainings are the training rows of a model, and how to read them. "x kept" is an ordinary LoRA by the same kernels: finetune.BenchConfig.Ordinary.
func (c *benchGPUCmd) trainings() []trainingCase {
	if strings.HasPrefix(c.Model, "smollm2") {
		return []trainingCase{
			{"40 × 200 tokens", finetune.BenchConfig{Rank: c.Rank, Length: 200, Sequences: 40}},
			{"80 × 200 tokens", finetune.BenchConfig{Rank: c.Rank, Length: 200, Sequences: 80}},
		}
	}
	return []trainingCase{
		{"4 × 1,024 tokens", finetune.BenchConfig{Rank: c.Rank, Length: 1024, Sequences: 4}},
		{"4 × 1,024 tokens", finetune.BenchConfig{Rank: 8, Length: 1024, Sequences: 4}},
		{"4 × 1,024 tokens, x kept", finetune.BenchConfig{Rank: 8, Length: 1024, Sequences: 4, Ordinary: true}},
		{"4 × 1,024 tokens", finetune.BenchConfig{Rank: 64, Length: 1024, Sequences: 4}},
		{"4 × 1,024 tokens, x kept", finetune.BenchConfig{Rank: 64, Length: 1024, Sequences: 4, Ordinary: true}},
		{"4 × 1,024 tokens", finetune.BenchConfig{Rank: c.Rank, Length: 1024, Sequences: 4, Plan: "mlp"}},
		{"8 × 1,024 tokens", finetune.BenchConfig{Rank: c.Rank, Length: 1024, Sequences: 8, Plan: "layer"}},
		{"8 × 512 tokens", finetune.BenchConfig{Rank: c.Rank, Length: 512, Sequences: 8}},
		{"8 tenants × 512 tokens", finetune.BenchConfig{Rank: c.Rank, Length: 512, Sequences: 1, Tenants: 8}},
	}
}

type trainingCase struct {
	name   string
	config finetune.BenchConfig
}

// training measures optimizer steps: the median of some, the memory they need over the base, and with Profile which kernels take the time.
func (c *benchGPUCmd) training(m *infer.Model, flops float64, weights float64) error {
	for _, k := range c.trainings() {
		if k.config.Rank > m.R() {
			continue
		}
		if err := c.trainingRow(m, k, flops, weights); err != nil {
			return fmt.Errorf("training %s, rank %d: %w", k.name, k.config.Rank, err)
		}
	}
	return nil
}

func (c *benchGPUCmd) trainingRow(m *infer.Model, k trainingCase, flops, weights float64) error {
	be := m.Backend
	free := be.Info().MemoryFree
	b, err := finetune.OpenBench(m, k.config)
	if err != nil {
		return err
	}
	defer b.Close()
	for range 2 { // allocates scratch, chooses algorithms
		if _, err := b.Step(); err != nil {
			return err
		}
	}
	memory := free - be.Info().MemoryFree
	var steps []time.Duration
	for range 5 {
		took, err := b.Step()
		if err != nil {
			return err
		}
		steps = append(steps, took)
	}
	took, tokens := median(steps), float64(b.Tokens())
	work := 4 * tokens * weights // a product forward and one backward
	c.add(benchRow{Name: fmt.Sprintf("training %s, rank %d, plan %s", k.name, k.config.Rank, b.Plan()), Kind: "training", Rank: k.config.Rank, R: m.R(), Milliseconds: ms(took),
		TokensPerSecond: tokens / took.Seconds(), FloorMS: 1e3 * work / flops, More: map[string]float64{"memory_bytes": float64(memory)},
		Note: fmt.Sprintf("%.2f GiB over the base", float64(memory)/(1<<30))})
	if norm := b.GradNorm(); math.IsNaN(norm) || math.IsInf(norm, 0) {
		c.say("  the gradient's norm is %v", norm)
	}
	p, ok := be.(cuda.Profiler)
	if !c.Profile || !ok {
		return nil
	}
	shares, err := p.Profile(func() error { _, err := b.Step(); return err })
	if err != nil {
		return err
	}
	var sum time.Duration
	for _, s := range shares {
		sum += s.Time
	}
	for _, s := range shares {
		c.say("    %-48s %5d × %8.1f µs = %8.2f ms %5.1f %%", s.Name, s.Count, 1e6*s.Time.Seconds()/float64(s.Count), ms(s.Time), 100*s.Time.Seconds()/sum.Seconds())
	}
	c.say("    %-48s %30.2f ms", "together, not overlapped", ms(sum))
	return nil
}
