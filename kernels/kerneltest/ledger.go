package kerneltest

import (
	"fmt"
	"maps"
	"sync"

	"bhive/kernels"
)

// Ledger is a backend that keeps account of what is allocated through it. It is safe for concurrent use where the backend is.
type Ledger struct {
	kernels.Backend

	mu   sync.Mutex
	live map[any]entry // by handle
	made int
	fail int // the allocation that fails, counted from 1; 0: none
}

// entry is something that is not given back yet.
type entry struct {
	kind  string
	bytes int64 // of device memory, as it was asked for; 0 for streams, tables, graphs
}

// NewLedger stands before a backend.
func NewLedger(be kernels.Backend) *Ledger { return &Ledger{Backend: be, live: map[any]entry{}} }

// Live counts what is not given back, by kind: "tensor", "pinned", "stream", "weight", "cache", "adapter table", "lane table", "graph".
func (l *Ledger) Live() map[string]int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := map[string]int{}
	for e := range maps.Values(l.live) {
		n[e.kind]++
	}
	return n
}

// Bytes of device memory in tensors, weights and caches that are not given back. A driver may take more for them.
func (l *Ledger) Bytes() (n int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for e := range maps.Values(l.live) {
		n += e.bytes
	}
	return n
}

// FailAt makes the n-th allocation from now on fail with kernels.ErrNoMemory; 0: none. Streams do not count: they cannot fail.
func (l *Ledger) FailAt(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.made, l.fail = 0, n; n < 0 {
		panic("kerneltest: a negative count")
	}
}

func (l *Ledger) try(what string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.made++; l.made == l.fail {
		return fmt.Errorf("%w: a %s, by order of the test", kernels.ErrNoMemory, what)
	}
	return nil
}

func (l *Ledger) enter(what string, handle any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.live[handle].kind != "" {
		panic("kerneltest: a " + what + " was made twice")
	}
	e := entry{kind: what}
	if m, ok := handle.(interface{ Bytes() int64 }); ok {
		e.bytes = m.Bytes()
	}
	l.live[handle] = e
}

func (l *Ledger) strike(what string, handle any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.live[handle].kind != what {
		panic("kerneltest: a " + what + " that is not there is given back")
	}
	delete(l.live, handle)
}

// made notes the outcome of an allocation.
func made[T any](l *Ledger, what string, make func() (T, error), handle func(T) any) (T, error) {
	var none T
	if err := l.try(what); err != nil {
		return none, err
	}
	t, err := make()
	if err != nil {
		return none, err
	}
	l.enter(what, handle(t))
	return t, nil
}

func itself[T any](t T) any { return t }

func (l *Ledger) Alloc(d kernels.DType, rows, cols int) (kernels.Tensor, error) {
	return made(l, "tensor", func() (kernels.Tensor, error) { return l.Backend.Alloc(d, rows, cols) }, func(t kernels.Tensor) any { return t.Buf })
}

func (l *Ledger) Free(t kernels.Tensor) {
	if t.Present() {
		l.strike("tensor", t.Buf)
	}
	l.Backend.Free(t)
}

func (l *Ledger) Pinned(n int) ([]byte, error) {
	return made(l, "pinned", func() ([]byte, error) { return l.Backend.Pinned(n) }, func(p []byte) any { return &p[0] })
}

func (l *Ledger) FreePinned(p []byte) {
	l.strike("pinned", &p[0])
	l.Backend.FreePinned(p)
}

func (l *Ledger) NewStream() kernels.Stream {
	s := l.Backend.NewStream()
	l.enter("stream", s)
	return s
}

func (l *Ledger) FreeStream(s kernels.Stream) {
	l.strike("stream", s)
	l.Backend.FreeStream(s)
}

func (l *Ledger) NewWeight(w kernels.WeightSpec) (kernels.Weight, error) {
	return made(l, "weight", func() (kernels.Weight, error) { return l.Backend.NewWeight(w) }, itself)
}

func (l *Ledger) FreeWeight(w kernels.Weight) {
	l.strike("weight", w)
	l.Backend.FreeWeight(w)
}

func (l *Ledger) NewKVCache(k kernels.KVSpec) (kernels.KVCache, error) {
	return made(l, "cache", func() (kernels.KVCache, error) { return l.Backend.NewKVCache(k) }, itself)
}

func (l *Ledger) FreeKVCache(c kernels.KVCache) {
	l.strike("cache", c)
	l.Backend.FreeKVCache(c)
}

func (l *Ledger) NewAdapterTable(n int) (kernels.AdapterTable, error) {
	return made(l, "adapter table", func() (kernels.AdapterTable, error) { return l.Backend.NewAdapterTable(n) }, itself)
}

func (l *Ledger) FreeAdapterTable(t kernels.AdapterTable) {
	l.strike("adapter table", t)
	l.Backend.FreeAdapterTable(t)
}

func (l *Ledger) NewLaneTable(n int) (kernels.LaneTable, error) {
	return made(l, "lane table", func() (kernels.LaneTable, error) { return l.Backend.NewLaneTable(n) }, itself)
}

func (l *Ledger) FreeLaneTable(t kernels.LaneTable) {
	l.strike("lane table", t)
	l.Backend.FreeLaneTable(t)
}

// Capture counts graphs too.
func (l *Ledger) Capture(s kernels.Stream, f func()) (kernels.Graph, error) {
	return made(l, "graph", func() (kernels.Graph, error) {
		g, err := l.Backend.Capture(s, f)
		return &ledgerGraph{g, l}, err
	}, itself)
}

type ledgerGraph struct {
	kernels.Graph
	l *Ledger
}

func (g *ledgerGraph) Close() {
	g.l.strike("graph", g)
	g.Graph.Close()
}
