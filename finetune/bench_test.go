package finetune

import (
	"testing"
	"time"

	"bhive/kernels/devicetest"
)

// TestBench runs optimizer steps of the benchmark; times are not looked at.
func TestBench(t *testing.T) {
	m := demoModel(t, 8)
	free := m.Backend.Info().MemoryFree
	b, err := OpenBench(m, BenchConfig{Rank: 4, Length: 12, Sequences: 2, Tenants: 2})
	if err != nil {
		t.Fatal(err)
	}
	before := b.lanes[1].Weights()
	for range 2 {
		if took, err := b.Step(); err != nil || took <= 0 {
			t.Fatal(took, err)
		}
	}
	if b.Tokens() != 48 || b.lanes[0].pos.Updates != 2 || b.lanes[1].pos.Updates != 2 || b.lanes[1].trained != 24 || !(b.GradNorm() > 0) {
		t.Errorf("%d tokens, %d and %d updates, %d trained, norm %g", b.Tokens(), b.lanes[0].pos.Updates, b.lanes[1].pos.Updates, b.lanes[1].trained, b.GradNorm())
	}
	moved := false
	for i, v := range b.lanes[1].Weights().Data {
		moved = moved || v != before.Data[i]
	}
	if !moved {
		t.Error("no weight has moved")
	}
	for range 2 { // as an engine runs them
		for done := len(b.steps) + 1; len(b.steps) < done; {
			if _, more := b.Next(); !more {
				t.Fatal("the benchmark has ended", b.Err())
			}
			b.Enqueue(nil)
		}
	}
	from, to := b.enqueued[0], b.enqueued[len(b.enqueued)-1].Add(time.Nanosecond)
	if rate, want := b.Rate(from, to), 2*48/to.Sub(from).Seconds(); rate < 0.8*want || rate > 1.5*want {
		t.Errorf("%g tokens a second, want about %g: two steps in %v", rate, want, to.Sub(from))
	}
	if half := b.Rate(from, b.enqueued[len(b.enqueued)/4]); half <= 0 {
		t.Error("no tokens in half a step")
	}
	b.Close()
	if now := m.Backend.Info().MemoryFree; now != free && devicetest.OnCPU() { // a GPU keeps a stream's scratch
		t.Errorf("%d bytes free before, %d after", free, now)
	}
}
