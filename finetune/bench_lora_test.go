package finetune

import (
	"math"
	"slices"
	"testing"

	"bhive/adapters"
	"bhive/kernels"
	"bhive/kernels/devicetest"
)

// seen keeps what went into each linear, and adds up every dA from that and from dz.
type seen struct {
	kernels.Backend
	t      *testing.T
	o      *ordinary
	inputs map[kernels.Weight][]float64 // [T, in]
	want   []float64                    // dA, as ordinary lays it out
}

func (b *seen) values(s kernels.Stream, x kernels.Tensor) []float64 {
	b.t.Helper()
	flat, err := b.Alloc(kernels.F32, x.Rows, x.Cols)
	if err != nil {
		b.t.Fatal(err)
	}
	defer b.Free(flat)
	b.Copy(s, flat, x)
	out := make([]float32, flat.Elements())
	b.Download(s, floatBytes(out), flat)
	if err := s.Sync(); err != nil {
		b.t.Fatal(err)
	}
	wide := make([]float64, len(out))
	for i, v := range out {
		wide[i] = float64(v)
	}
	return wide
}

func (b *seen) Linear(s kernels.Stream, yz, x kernels.Tensor, w kernels.Weight, step kernels.Step) {
	b.Backend.Linear(s, yz, x, w, step)
	b.inputs[w] = b.values(s, x)
}

func (b *seen) ExpandBackward(s kernels.Stream, a kernels.ExpandBackwardArgs, step kernels.Step) {
	b.Backend.ExpandBackward(s, a, step)
	if a.B.Table == nil {
		return
	}
	at, g, rank, r := b.o.rows[a.B.Offset], b.o.m.Geometry, b.o.a.Rank, b.o.m.R()
	dz, x, in := b.values(s, a.DYZ.ColRange(a.B.Out, a.DYZ.Cols)), b.inputs[b.o.m.Layers[at.layer].Weight(at.site)], g.In(at.site)
	for _, p := range at.site.Projs() {
		to := b.want[rank*b.o.offset(at.layer, p):]
		for t := range step.Bucket.Tokens {
			for i := range in {
				for j := range rank {
					to[i*rank+j] += x[t*in+i] * dz[t*r+j]
				}
			}
		}
	}
}

// TestBenchOrdinary: the benchmark of an ordinary LoRA trains B as the other does, to the bit, has every projection's dA, and moves all of A.
func TestBenchOrdinary(t *testing.T) {
	if !devicetest.OnCPU() || rounds() {
		t.Skip("bits and sums of the CPU")
	}
	m := demoModel(t, 8)
	free := m.Backend.Info().MemoryFree
	c := BenchConfig{Rank: 4, Length: 12, Sequences: 2}
	weights := func(b *Bench) []float32 {
		for range 2 {
			if _, err := b.Step(); err != nil {
				t.Fatal(err)
			}
		}
		return b.lanes[0].Weights().Data
	}
	open := func() *Bench {
		b, err := OpenBench(m, c)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	b := open()
	fa := free - m.Backend.Info().MemoryFree
	want := weights(b)
	b.Close()
	c.Ordinary = true
	b = open()
	tokens, g := int64(b.Tokens()), m.Geometry
	least := 4*tokens*int64(g.Layers)*int64(2*g.Hidden+g.FeedForward) + 5*4*b.lora.a.Master.Elements() // x, and A with its optimizer
	if more := free - m.Backend.Info().MemoryFree - fa; more < least || more > least+least/20 {
		t.Errorf("%d bytes more than LoRA-FA, of which x and A take %d", more, least)
	}
	if !slices.Equal(weights(b), want) {
		t.Error("B is not what it is without x kept")
	}
	masters := b.trainer.downloadFloats(b.lora.a.Master)
	for layer := range g.Layers {
		for p := range adapters.NumProjs {
			rows := masters[c.Rank*b.lora.offset(layer, p):][:c.Rank*g.In(p.Site())]
			if norm(rows, nil) == 0 {
				t.Errorf("layer %d, %v: A has not moved", layer, p)
			}
		}
	}

	spy := &seen{Backend: b.lora.Backend, t: t, o: b.lora, inputs: map[kernels.Weight][]float64{}, want: make([]float64, len(masters))}
	b.lora.Backend = spy
	for b.trainer.pass == nil || b.trainer.pass.stage != stageUpdate {
		if _, err := b.trainer.Unit(); err != nil {
			t.Fatal(err)
		}
	}
	got := b.trainer.downloadFloats(b.lora.a.Grad)
	size := 0.0
	for _, w := range spy.want {
		size = max(size, math.Abs(w))
	}
	for i, w := range spy.want {
		if math.Abs(float64(got[i])-w) > 1e-4*size {
			t.Fatalf("dA %d is %g, want %g", i, got[i], w)
		}
	}
	if size == 0 {
		t.Error("no dA")
	}
	b.Close()
	if now := m.Backend.Info().MemoryFree; now != free {
		t.Errorf("%d bytes free before, %d after", free, now)
	}
}
