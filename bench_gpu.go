package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"time"

	"bhive/adapters"
	"bhive/infer"
	"bhive/kernels"
	"bhive/kernels/cuda"
)

// benchGPUCmd measures a GPU with a random model.
type benchGPUCmd struct {
	Model     string `help:"Shape of the random model." default:"llama-3-8b"`
	Rank      int    `help:"Rank of the adapters." default:"16"`
	Rows      int    `help:"Rows of each A." default:"64"`
	Batches   []int  `help:"Decode batches." default:"1,8,64,128"`
	Budget    int    `help:"Tokens of a prefill step." default:"8192"`
	JSON      bool   `name:"json" help:"Print rows as JSON."`
	NoLt      bool   `help:"Without cuBLASLt."`
	NoOverlap bool   `help:"Start each kernel only when the one before it has ended."`
	Only      string `help:"What to measure: ${enum}." enum:"all,serving,training" default:"all"`
	Profile   bool   `help:"Which kernels the training steps' time goes to."`
}

// benchRow is one measurement.
type benchRow struct {
	Name            string  `json:"name"`
	Milliseconds    float64 `json:"ms"`
	TokensPerSecond float64 `json:"tokens_per_second,omitempty"`
	FloorMS         float64 `json:"floor_ms,omitempty"` // bytes or operations over the ceiling measured in the same run
	AgainstBase     float64 `json:"against_base,omitempty"`
	MemoryBytes     int64   `json:"memory_bytes,omitempty"` // over the base
}

// Run measures and prints as it goes.
func (c *benchGPUCmd) Run(ctx context.Context, log *slog.Logger) error {
	be, err := cuda.Open(cuda.Config{Working: kernels.BF16, NoLt: c.NoLt, NoOverlap: c.NoOverlap})
	if err != nil {
		return err
	}
	defer be.Close()
	config, err := infer.RandomConfig(c.Model)
	if err != nil {
		return err
	}
	hash := infer.RandomHash(c.Model, 1)
	basis, err := adapters.NewBasis(ctx, adapters.BasisConfig{Method: adapters.Kaiming, R: c.Rows, Geometry: infer.GeometryOf(config), BaseHash: hash})
	if err != nil {
		return err
	}
	var rows []benchRow
	add := func(r benchRow) {
		rows = append(rows, r)
		if !c.JSON {
			fmt.Printf("%-58s %9.3f ms", r.Name, r.Milliseconds)
			if r.TokensPerSecond > 0 {
				fmt.Printf(" %9.0f tok/s", r.TokensPerSecond)
			}
			if r.FloorMS > 0 {
				fmt.Printf("  floor %7.3f ms, %3.0f %%", r.FloorMS, 100*r.FloorMS/r.Milliseconds)
			}
			if r.AgainstBase > 0 {
				fmt.Printf("  %+.1f %% of the base", 100*(r.AgainstBase-1))
			}
			if r.MemoryBytes > 0 {
				fmt.Printf("  %.2f GiB over the base", float64(r.MemoryBytes)/(1<<30))
			}
			fmt.Println()
		}
	}
	longest := 2048
	if !c.JSON {
		fmt.Printf("random:%s, bf16, R = %d; %s\n", c.Model, c.Rows, be.Info().Device)
	}
	measure := func(basis *adapters.Basis) error {
		start := time.Now()
		m, err := infer.LoadRandom(ctx, be, c.Model, 1, basis, infer.LoadConfig{BaseHash: hash})
		if err != nil {
			return err
		}
		defer m.Close()
		log.Debug("model made", "bytes", m.Bytes(), "seconds", time.Since(start).Seconds())
		slots := 0
		if basis != nil {
			slots = 64
		}
		kvTokens := 16 * longest
		for _, n := range c.Batches {
			kvTokens = max(kvTokens, n*656)
		}
		b, err := infer.NewDeviceBench(m, kvTokens, slots, c.Rank)
		if err != nil {
			return err
		}
		defer func() {
			if b != nil {
				b.Close()
			}
		}()
		bandwidth, flops, err := b.Ceilings()
		if err != nil {
			return err
		}
		what := "with A"
		if basis == nil {
			what = "without A"
		}
		if !c.JSON {
			fmt.Printf("ceilings: copy %.0f GB/s, product of 8,192 tokens %.0f TFLOP/s\n", bandwidth/1e9, flops/1e12)
		}
		weights := float64(b.StepBytes(0, 0, 0)) / 2 // elements; all but the head's multiply every token
		if basis != nil && c.Only != "serving" {
			b.Close()
			b = nil
			if err := c.training(m, flops, weights, add); err != nil || c.Only == "training" {
				return err
			}
			if b, err = infer.NewDeviceBench(m, kvTokens, slots, c.Rank); err != nil {
				return err
			}
		}
		prefill := func(distinct int) (time.Duration, error) { return b.Prefill(ctx, 16, distinct, longest, c.Budget, 3) }
		plain, err := prefill(0)
		if err != nil {
			return err
		}
		tokens := float64(16 * longest)
		add(benchRow{Name: fmt.Sprintf("prefill 16 × %d, %s", longest, what), Milliseconds: ms(plain), TokensPerSecond: tokens / plain.Seconds(),
			FloorMS: 1e3 * 2 * tokens * (weights - float64(config.Vocab*config.Hidden)) / flops})
		if basis != nil {
			t, err := prefill(16)
			if err != nil {
				return err
			}
			add(benchRow{Name: fmt.Sprintf("prefill 16 × %d, 16 distinct adapters of rank %d", longest, c.Rank), Milliseconds: ms(t), TokensPerSecond: tokens / t.Seconds(),
				AgainstBase: float64(t) / float64(plain)})
		}
		decode := func(name string, batch, distinct int, base time.Duration) (time.Duration, error) {
			t, err := b.Decode(ctx, batch, distinct, 512, 128)
			if err != nil {
				return 0, err
			}
			r := benchRow{Name: name, Milliseconds: ms(t), TokensPerSecond: float64(batch) / t.Seconds(), FloorMS: 1e3 * float64(b.StepBytes(batch, distinct, 576)) / bandwidth}
			if base > 0 {
				r.AgainstBase = float64(t) / float64(base)
			}
			add(r)
			return t, nil
		}
		base := map[int]time.Duration{}
		for _, n := range c.Batches {
			if base[n], err = decode(fmt.Sprintf("decode B = %d, %s", n, what), n, 0, 0); err != nil {
				return err
			}
		}
		if basis == nil {
			return nil
		}
		for _, k := range []struct{ batch, distinct, rank int }{{1, 1, c.Rank}, {64, 1, c.Rank}, {64, 8, c.Rank}, {64, 64, c.Rank}, {64, 64, 64}} {
			if base[k.batch] == 0 || k.rank > c.Rows {
				continue
			}
			if k.rank != c.Rank {
				if err := b.SetRank(k.rank); err != nil {
					return err
				}
			}
			if _, err := decode(fmt.Sprintf("decode B = %d, %d distinct adapters of rank %d", k.batch, k.distinct, k.rank), k.batch, k.distinct, base[k.batch]); err != nil {
				return err
			}
		}
		return nil
	}
	if err := measure(basis); err != nil {
		return err
	}
	if c.Only != "training" {
		if err := measure(nil); err != nil {
			return err
		}
	}
	if c.JSON {
		e := json.NewEncoder(os.Stdout)
		e.SetIndent("", "  ")
		return e.Encode(rows)
	}
	return nil
}

func ms(d time.Duration) float64 { return 1e3 * d.Seconds() }
