package infer

import (
	"sync"
	"testing"
	"time"

	"bhive/kernels"
)

// hostTimes adds up what steps take on the host beside their ops.
type hostTimes struct {
	mu          sync.Mutex
	steps       int
	total, host time.Duration
}

func (h *hostTimes) ObserveStep(s StepInfo) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if s.DecodeSeqs == 8 && s.PrefillTokens == 0 {
		h.steps++
		h.total += s.Duration
		h.host += s.Host
	}
}

func (h *hostTimes) ObserveFinish(RequestInfo)  {}
func (h *hostTimes) ObserveSlice(time.Duration) {}

// BenchmarkDecode8 reports a decode step of 8 sequences and the engine's share of it: scheduling, metadata, text.
func BenchmarkDecode8(b *testing.B) {
	r := newRig(b, kernels.BF16)
	times := &hostTimes{}
	e := r.start(b, Config{MaxSeqs: 8, KVBlocks: 600, Observer: times})
	p := greedily(400)
	p.IgnoreEOS = true
	for b.Loop() {
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() { generate(b, e, Request{Prompt: []int{5, 6, 7 + i}, Params: p}) })
		}
		wg.Wait()
	}
	times.mu.Lock()
	defer times.mu.Unlock()
	b.ReportMetric(float64(times.total.Microseconds())/float64(times.steps), "µs/step")
	b.ReportMetric(float64(times.host.Microseconds())/float64(times.steps), "µs-host/step")
	b.ReportMetric(100*float64(times.host)/float64(times.total), "%host")
}
