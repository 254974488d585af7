//go:build cuda

package cuda

import (
	"errors"
	"slices"

	"gorgonia.org/cu"

	"bhive/kernels"
)

// stream is a CUDA stream with scratch memory of its own.
type stream struct {
	b         *Backend
	s         cu.Stream
	owned     []cu.DevicePtr // what the scratch memory is and was
	partial   scratch        // of skinny linears
	arrived   scratch        // their counters, zero between kernels
	splits    scratch        // of decode attention
	joined    scratch        // its counters
	logits    scratch        // of sampling
	workspace scratch        // of cuBLASLt
	rows      scratch        // of attention backward: lse and delta
	losses    scratch        // logits of a chunk of tokens, then their gradients
	chunks    scratch        // tokens of each chunk of a step
	norms     scratch        // partial sums of gradient norms
}

// scratch grows to what is asked and is freed with the stream or the backend: a captured graph may still refer to what it was.
type scratch struct {
	at    cu.DevicePtr
	bytes int64
}

// NewStream makes a stream. A failure shows at its first Sync.
func (b *Backend) NewStream() kernels.Stream {
	defer b.enter()()
	s, err := cu.MakeStream(cu.NonBlocking)
	b.keep(err)
	return &stream{b: b, s: s}
}

// FreeStream waits for a stream and frees it with its scratch memory. Graphs captured on it must not be launched any more.
func (b *Backend) FreeStream(k kernels.Stream) {
	s := k.(*stream)
	defer b.enter()()
	b.keep(s.s.Synchronize())
	for _, p := range s.owned {
		b.release(p)
	}
	b.keep(s.s.Destroy())
	*s = stream{b: b}
}

// release frees what would be freed at Close.
func (b *Backend) release(p cu.DevicePtr) {
	if i := slices.Index(b.owned, p); i >= 0 {
		b.owned = slices.Delete(b.owned, i, i+1)
		b.keep(cu.MemFree(p))
	}
}

// grow returns scratch of at least n bytes, zeroed when it is new.
func (s *stream) grow(m *scratch, n int64) uint64 {
	if m.bytes < n {
		defer s.b.enter()()
		n = max(n, m.bytes*3/2)
		p, err := s.b.zeroed(n)
		if err != nil {
			panic(err) // it fails the step: kernels.ErrNoMemory
		}
		s.b.owned, s.owned = append(s.b.owned, p), append(s.owned, p)
		*m = scratch{p, n}
	}
	return uint64(m.at)
}

func (s *stream) Record() kernels.Event {
	defer s.b.enter()()
	e := &event{b: s.b}
	s.b.mu.Lock()
	if n := len(s.b.events); n > 0 {
		e.e = s.b.events[n-1]
		s.b.events = s.b.events[:n-1]
		s.b.mu.Unlock()
	} else {
		s.b.mu.Unlock()
		var err error
		e.e, err = cu.MakeEvent(cu.DisableTiming)
		s.b.keep(err)
	}
	s.b.keep(e.e.Record(s.s))
	return e
}

func (s *stream) WaitFor(k kernels.Event) {
	defer s.b.enter()()
	if e := k.(*event); !e.passed {
		s.b.keep(s.s.Wait(e.e, 0))
	}
}

func (s *stream) Sync() error {
	defer s.b.enter()()
	s.b.keep(s.s.Synchronize())
	return s.b.failure()
}

// event is a point in a stream. Once it is seen to have passed its CUDA event is used again.
type event struct {
	b      *Backend
	e      cu.Event
	passed bool
}

func (e *event) pass() {
	e.passed = true
	e.b.mu.Lock()
	e.b.events = append(e.b.events, e.e)
	e.b.mu.Unlock()
}

func (e *event) Done() bool {
	if e.passed {
		return true
	}
	defer e.b.enter()()
	err := e.e.Query()
	if errors.Is(err, cu.NotReady) {
		return false
	}
	e.b.keep(err)
	if err == nil {
		e.pass()
	}
	return true
}

func (e *event) Wait() error {
	if !e.passed {
		defer e.b.enter()()
		err := e.e.Synchronize()
		e.b.keep(err)
		if err == nil {
			e.pass()
		}
	}
	return e.b.failure()
}

// Capture records f's ops as a CUDA graph. Errors: kernels.ErrNoMemory, where an op's scratch memory does not fit.
func (b *Backend) Capture(k kernels.Stream, f func()) (_ kernels.Graph, err error) {
	defer b.enter()()
	s := k.(*stream)
	if err := beginCapture(s.s); err != nil {
		return nil, err
	}
	ended := false
	defer func() {
		if ended {
			return
		}
		// f panics, or ends its goroutine.
		if g, err := endCapture(s.s); err == nil {
			b.keep(g.free())
		}
		p := recover()
		switch e, ok := p.(error); {
		case ok && errors.Is(e, kernels.ErrNoMemory):
			err = e
		case p != nil:
			panic(p)
		}
	}()
	f()
	ended = true
	g, err := endCapture(s.s)
	if err != nil {
		return nil, err
	}
	return &graph{b, g}, b.failure()
}

type graph struct {
	b *Backend
	g execGraph
}

func (g *graph) Launch(k kernels.Stream) { g.b.keep(g.g.launch(k.(*stream).s)) }
func (g *graph) Close()                  { g.b.keep(g.g.free()) }
