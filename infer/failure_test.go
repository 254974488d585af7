package infer

import (
	"context"
	"errors"
	"strings"
	"testing"

	"bhive/kernels"
)

// TestStopFailsWhatRuns: the end of Run is an error for those who wait, not a hang.
func TestStopFailsWhatRuns(t *testing.T) {
	b := newRig(t, kernels.F32)
	ctx, cancel := context.WithCancel(t.Context())
	steps := 0
	e, err := New(Config{MaxSeqs: 2, KVBlocks: 128, Observer: stepped{nil, func(StepInfo) {
		if steps++; steps == 3 { // not by the test's goroutine, which may come when the context is full
			cancel()
		}
	}}}, b.model, nil, nil, b.tok)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if err := e.Open(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- e.Run(ctx) }()
	p := greedily(0)
	p.IgnoreEOS = true
	g, err := e.Submit(t.Context(), Request{Prompt: []int{5, 6}, Params: p})
	if err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if _, err := all(t.Context(), g, 1); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
	if _, err := e.Submit(t.Context(), Request{Prompt: []int{5, 6}, Params: p}); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
	if err := e.Do(t.Context(), func() error { return nil }); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
}

// failing panics in one op.
type failing struct {
	kernels.Backend
	left int // calls of that op that do not
}

func (f *failing) Attention(s kernels.Stream, a kernels.AttentionArgs, step kernels.Step) {
	if f.left--; f.left == -1 {
		panic("attention fails")
	}
	f.Backend.Attention(s, a, step)
}

// TestFailedStep: a step that fails fails those in it, and the engine goes on.
func TestFailedStep(t *testing.T) {
	b := newRig(t, kernels.F32)
	broken := &failing{Backend: b.be, left: 10 * b.model.Config.Layers}
	b.model.Backend = broken
	e := b.start(t, Config{MaxSeqs: 2, KVBlocks: 128, Overlap: true})
	p := greedily(0)
	p.IgnoreEOS = true
	g, err := e.Submit(t.Context(), Request{Prompt: []int{5, 6}, Params: p})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := all(t.Context(), g, 1); !errors.Is(err, ErrStep) || !strings.Contains(err.Error(), "attention fails") {
		t.Errorf("the failed request: %v", err)
	}
	if got := generate(t, e, Request{Prompt: []int{5, 6}, Params: greedily(3)})[0]; len(got.IDs) == 0 {
		t.Errorf("afterwards: %+v", got)
	}
	if s := e.Stats(); s.KVUsed != 0 || s.Requests[ReasonError] != 1 {
		t.Errorf("at the end %+v", s)
	}
}

// closing is a client's context that is looked at when Close has begun to stop the engine.
type closing struct {
	context.Context
	e *Engine
}

func (c closing) Done() <-chan struct{} {
	c.e.phase = phaseStopped // the mutex is held
	return nil
}

// TestCloseMeetsSubmit: a request that is queued while the engine is closed ends once.
func TestCloseMeetsSubmit(t *testing.T) {
	b := newRig(t, kernels.F32)
	e, err := New(Config{MaxSeqs: 2, KVBlocks: 128}, b.model, nil, nil, b.tok)
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Open(); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Submit(closing{context.Background(), e}, Request{Prompt: []int{5}, Params: greedily(1)}); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
	e.stop(ErrClosed) // as Close goes on
	if e.active != 0 || e.waiting != 0 {
		t.Errorf("%d requests are left, %d of them waiting", e.active, e.waiting)
	}
	e.Close()
}

// TestQueueIsShared: a tenant that fills the queue leaves the others room.
func TestQueueIsShared(t *testing.T) {
	b := newRig(t, kernels.F32)
	e, err := New(Config{MaxSeqs: 1, KVBlocks: 128, QueueLimit: 6}, b.model, nil, nil, b.tok)
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Open(); err != nil {
		t.Fatal(err)
	}
	submit := func(tenant string) error {
		_, err := e.Submit(t.Context(), Request{Tenant: tenant, Prompt: []int{5}, Params: greedily(1)})
		return err
	}
	for _, c := range []struct {
		tenant string
		room   int
	}{{"a", 6}, {"b", 3}, {"a", 0}, {"c", 2}, {"b", 0}} {
		for range c.room {
			if err := submit(c.tenant); err != nil {
				t.Fatalf("%s: %v", c.tenant, err)
			}
		}
		if err := submit(c.tenant); !errors.Is(err, ErrQueueFull) {
			t.Errorf("%s has more than its share: %v", c.tenant, err)
		}
	}
	e.Close()
	if len(e.lines) != 0 {
		t.Errorf("still waiting: %v", e.lines)
	}
}

// TestPlaceIsFree: whoever has seen the end of a request finds its place in the queue free.
func TestPlaceIsFree(t *testing.T) {
	b := newRig(t, kernels.F32)
	e, err := New(Config{MaxSeqs: 1, KVBlocks: 128, QueueLimit: 1}, b.model, nil, nil, b.tok)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if err := e.Open(); err != nil {
		t.Fatal(err)
	}
	g, err := e.Submit(t.Context(), Request{Prompt: []int{5}, Params: greedily(1)})
	if err != nil {
		t.Fatal(err)
	}
	waiting := make(chan int)
	go func() {
		_, _ = all(context.Background(), g, 1)
		waiting <- e.waiting // without the mutex: the end must have come after it
	}()
	e.mu.Lock()
	w := e.inbox[0]
	e.inbox = nil
	e.mu.Unlock()
	go e.settle(w, nil)
	if n := <-waiting; n != 0 {
		t.Errorf("%d requests wait", n)
	}
}

// TestClosedUnopened: a request to an engine that is closed before it was opened ends.
func TestClosedUnopened(t *testing.T) {
	b := newRig(t, kernels.F32)
	e, err := New(Config{MaxSeqs: 2, KVBlocks: 128}, b.model, nil, nil, b.tok)
	if err != nil {
		t.Fatal(err)
	}
	g, err := e.Submit(t.Context(), Request{Prompt: []int{5}, Params: greedily(1)})
	if err != nil {
		t.Fatal(err)
	}
	e.Close()
	if _, err := all(t.Context(), g, 1); !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
}
