package cpu

import (
	"errors"
	"math"
	"testing"

	"bhive/kernels"
)

func TestConfig(t *testing.T) {
	for _, c := range []Config{{Threads: -1}, {Working: kernels.U8}, {MemoryBytes: -5}} {
		if _, err := Open(c); !errors.Is(err, ErrConfig) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

func TestNoMemory(t *testing.T) {
	r := newRig(t, Config{Threads: 1, MemoryBytes: 1000})
	first := r.alloc(kernels.F32, 10, 20)
	for name, f := range map[string]func() error{
		"tensor":   func() error { _, err := r.Alloc(kernels.F32, 10, 10); return err },
		"overflow": func() error { _, err := r.Alloc(kernels.F32, math.MaxInt/2, math.MaxInt/2); return err },
		"pinned":   func() error { _, err := r.Pinned(500); return err },
		"weight": func() error {
			_, err := r.NewWeight(kernels.WeightSpec{Parts: []kernels.Matrix{r.host(20, 20)}, Format: kernels.FormatF32})
			return err
		},
		"cache": func() error {
			_, err := r.NewKVCache(kernels.KVSpec{Layers: 1, Blocks: 9, BlockTokens: 9, KVHeads: 1, HeadDim: 9})
			return err
		},
	} {
		if err := f(); !errors.Is(err, kernels.ErrNoMemory) {
			t.Errorf("%s: %v", name, err)
		}
	}
	r.Free(first)
	if i := r.Info(); i.MemoryFree != 1000 || i.MemoryTotal != 1000 {
		t.Errorf("%d of %d bytes free", i.MemoryFree, i.MemoryTotal)
	}
}

func TestWeightErrors(t *testing.T) {
	r := newRig(t, Config{Threads: 1})
	good := r.host(3, 4)
	for name, s := range map[string]kernels.WeightSpec{
		"no parts": {Format: kernels.FormatF32},
		"widths":   {Parts: []kernels.Matrix{good, r.host(3, 5)}, Format: kernels.FormatF32},
		"A":        {Parts: []kernels.Matrix{good}, A: r.host(3, 5), Format: kernels.FormatF32},
		"format":   {Parts: []kernels.Matrix{good}, Format: "int3"},
		"shard":    {Parts: []kernels.Matrix{good}, Format: kernels.FormatF32, Shard: kernels.Shard{Count: 2}},
	} {
		if _, err := r.NewWeight(s); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// TestShapes: an op panics on a shape that does not fit, before it touches anything.
func TestShapes(t *testing.T) {
	r := newRig(t, Config{Threads: 1})
	b := r.step(9, seq{n: 3, adapter: -1, lane: -1})
	w := r.weight(8, 6, 2, kernels.FormatF32)
	for name, f := range map[string]func(){
		"columns of yz": func() { r.Linear(r.s, r.garbage(5, 9), r.garbage(5, 6), w, b.step) },
		"rows of x":     func() { r.Linear(r.s, r.garbage(5, 10), r.garbage(4, 6), w, b.step) },
		"dtype":         func() { r.Linear(r.s, r.garbage(5, 10), r.alloc(kernels.BF16, 5, 6), w, b.step) },
		"twice freed":   func() { x := r.garbage(1, 1); r.Free(x); r.Free(x) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			f()
		}()
	}
}
