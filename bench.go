package main

import (
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"time"

	"bhive/adapters"
	"bhive/infer"
	"bhive/kernels/cpu/simd"
)

// benchCmd measures this machine.
type benchCmd struct {
	modelFlags
	Rank    int `help:"Rank of the adapters." default:"16"`
	Rows    int `help:"Rows of each A." default:"64"`
	Steps   int `help:"Decode steps of each kind." default:"64"`
	Prefill int `help:"Tokens of the prompt." default:"256"`
}

// Run prints the table.
func (c *benchCmd) Run(ctx context.Context, log *slog.Logger) error {
	basis := func(ctx context.Context, hash string, g adapters.Geometry, _ func() (*infer.Model, error)) (*adapters.Basis, error) {
		return adapters.NewBasis(ctx, adapters.BasisConfig{Method: adapters.Orthonormal, R: c.Rows, Geometry: g, BaseHash: hash})
	}
	l, err := c.load(ctx, log, basis, nil)
	if err != nil {
		return err
	}
	defer l.close()
	threads := c.Threads
	if threads == 0 {
		threads = runtime.GOMAXPROCS(0)
	}
	bandwidth, flops := ceilings(threads)
	r, err := infer.Bench(ctx, l.model, infer.BenchConfig{Rank: c.Rank, Steps: c.Steps, Prefill: c.Prefill})
	if err != nil {
		return err
	}
	again, _ := ceilings(threads)
	bandwidth = (bandwidth + again) / 2
	fmt.Printf("%s, %s weights, %d threads, %s; read loop %.1f GB/s, FMA %.0f GFLOP/s\n\n", l.name, c.Weights, threads, l.backend.Info().Device, bandwidth/1e9, flops/1e9)
	w := table()
	fmt.Fprintln(w, "WHAT\tTIME\tTOK/S\tGB/S\tOF READ LOOP")
	base := map[int]time.Duration{}
	for _, d := range r.Decode {
		what := fmt.Sprintf("decode, batch %d", d.Batch)
		note := ""
		if d.Adapters == 0 {
			base[d.Batch] = d.Step
		} else {
			what += fmt.Sprintf(", %d distinct adapters of rank %d", d.Adapters, c.Rank)
			note = fmt.Sprintf("\t%+.1f %% over the base", 100*(float64(d.Step)/float64(base[d.Batch])-1))
		}
		fmt.Fprintf(w, "%s\t%.2f ms\t%.1f\t%.1f\t%.0f %%%s\n", what, 1e3*d.Step.Seconds(), d.TokensPerSecond, d.BytesPerSecond/1e9, 100*d.BytesPerSecond/bandwidth, note)
	}
	fmt.Fprintf(w, "prefill, %d tokens\t%.1f ms\t%.0f\t\t\n", r.Prefill.Tokens, 1e3*r.Prefill.Time.Seconds(), r.Prefill.TokensPerSecond)
	return w.Flush()
}

// ceilings are what a plain read loop and register-only multiply-adds reach on this machine now, in bytes and operations a second.
func ceilings(threads int) (bandwidth, flops float64) {
	const each = 256 << 20
	bufs := make([][]byte, threads)
	for i := range bufs {
		bufs[i] = make([]byte, each)
		for j := 0; j < each; j += 4096 {
			bufs[i][j] = 1 // pages that were never written share one
		}
	}
	var sink [64]uint64
	for range 5 {
		bandwidth = max(bandwidth, float64(each*threads)/together(threads, func(i int) { sink[i%64] = simd.ReadBandwidth(bufs[i]) }).Seconds())
	}
	const rounds = 1 << 22
	var done int
	for range 3 {
		t := together(threads, func(i int) {
			if n := simd.PeakFMA(rounds); i == 0 {
				done = n
			}
		})
		flops = max(flops, float64(done*threads)/t.Seconds())
	}
	return bandwidth, flops
}

// together runs f on so many goroutines and returns how long the slowest took.
func together(n int, f func(i int)) time.Duration {
	var wg sync.WaitGroup
	start := time.Now()
	for i := range n {
		wg.Go(func() { f(i) })
	}
	wg.Wait()
	return time.Since(start)
}
