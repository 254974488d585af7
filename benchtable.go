package main

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"time"

	"bhive/kernels/cpu/simd"
)

// print writes the table.
func (r *benchResult) print(rank int) error {
	fmt.Printf("%s, %s weights, bhive %s, %s\n%s: %s; %d threads; read loop %.1f GB/s, FMA %.0f GFLOP/s\n\n", r.Model, r.Weights, r.Version, r.Date,
		r.CPU, r.Device, r.Threads, r.Ceilings.Read/1e9, r.Ceilings.FMA/1e9)
	w := table()
	fmt.Fprintln(w, "WHAT\tTIME\tTOK/S\tGB/S\tOF READ LOOP\tCOMPARED")
	ms := func(d time.Duration) float64 { return 1e3 * d.Seconds() }
	if r.Steps != nil {
		base := map[int]time.Duration{}
		for _, d := range r.Steps.Decode {
			what, note := fmt.Sprintf("decode, batch %d", d.Batch), ""
			if d.Adapters == 0 {
				base[d.Batch] = d.Step
			} else {
				what += fmt.Sprintf(", %d distinct adapters of rank %d", d.Adapters, rank)
				note = fmt.Sprintf("%+.1f %% time over the base", 100*(float64(d.Step)/float64(base[d.Batch])-1))
			}
			fmt.Fprintf(w, "%s\t%.2f ms\t%.1f\t%.1f\t%.0f %%\t%s\n", what, ms(d.Step), d.TokensPerSecond, d.BytesPerSecond/1e9, 100*d.BytesPerSecond/r.Ceilings.Read, note)
		}
		p := r.Steps.Prefill
		fmt.Fprintf(w, "prefill, %d tokens\t%.1f ms\t%.0f\t\t\t\n", p.Tokens, ms(p.Time), p.TokensPerSecond)
	}
	if t := r.Training; t != nil {
		fmt.Fprintf(w, "training, rank %d, %d tokens a step, all trained\t%.0f ms\t%.0f\t\t\t%.2f × prefill (%.0f tok/s beside it)\n", rank, t.Tokens, ms(t.Step), t.TokensPerSecond, t.Ratio, t.Prefill)
	}
	if h := r.HTTP; h != nil {
		fmt.Fprintf(w, "HTTP, %d streams, a step\t%.2f ms\t%.1f\t\t\t%+.1f %% time over the bare step (%.2f ms beside it)\n", h.Clients, ms(h.Step), float64(h.Clients)/h.Step.Seconds(), 100*h.Overhead, ms(h.Bare))
	}
	if g := r.Grammar; g != nil {
		fmt.Fprintf(w, "JSON Schema, %d texts, a step\t%.2f ms\t%.1f\t\t\t%+.1f %% time over free texts (%.2f ms beside it); %.1f µs a mask\n", g.Streams, ms(g.Step),
			float64(g.Streams)/g.Step.Seconds(), 100*g.Cost, ms(g.Free), 1e6*g.Mask.Seconds())
	}
	return w.Flush()
}

// cpuName is what the system calls the processor.
func cpuName() string {
	raw, _ := os.ReadFile("/proc/cpuinfo") // elsewhere the architecture must do
	fields := map[string]string{}
	for line := range strings.Lines(string(raw)) {
		if k, v, ok := strings.Cut(line, ":"); ok && fields[strings.TrimSpace(k)] == "" {
			fields[strings.TrimSpace(k)] = strings.TrimSpace(v)
		}
	}
	name := fields["model name"]
	if name == "" {
		return runtime.GOARCH
	}
	return fmt.Sprintf("%s (family %s, model %s)", name, fields["cpu family"], fields["model"])
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
