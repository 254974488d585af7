package infer

import (
	"math/rand/v2"
	"testing"

	"bhive/adapters"
	"bhive/kernels"
)

// TestLayout: what is alive together lies apart, and what is not mostly in one place.
func TestLayout(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 3))
		var l layout
		tensors := make([]kernels.Tensor, 1+r.IntN(40))
		for i := range tensors {
			from := r.IntN(20)
			l.add(&tensors[i], kernels.DType(r.IntN(3)), 1+r.IntN(4), 1+r.IntN(1000), during(from, from+r.IntN(44)))
		}
		bytes := l.place()
		memory := kernels.Tensor{Buf: fakeMemory(bytes)}
		l.bind(memory)
		for i, a := range l.tensors {
			if a.at%alignBlocks != 0 || a.end() > bytes {
				t.Fatalf("seed %d: a tensor of %d bytes at %d of %d", seed, a.bytes(), a.at, bytes)
			}
			if x := *a.to; x.Off*int64(x.DType.Size()) != a.at || x.Elements()*int64(x.DType.Size()) != a.bytes() {
				t.Fatalf("seed %d: the view %+v of the tensor at %d", seed, x, a.at)
			}
			for _, b := range l.tensors[:i] {
				if a.alive&b.alive != 0 && a.at < b.end() && b.at < a.end() {
					t.Fatalf("seed %d: tensors of %b and %b overlap", seed, a.alive, b.alive)
				}
			}
		}
		if floor := floorOf(l); bytes > floor*3/2 {
			t.Errorf("seed %d: %d bytes for what needs %d at one moment", seed, bytes, floor)
		}
	}
}

// floorOf is the most bytes that are alive at one moment.
func floorOf(l layout) (most int64) {
	for i := range 64 {
		var n int64
		for _, p := range l.tensors {
			if p.alive>>i&1 != 0 {
				n += aligned(p.bytes())
			}
		}
		most = max(most, n)
	}
	return most
}

type fakeMemory int64

func (m fakeMemory) Bytes() int64 { return int64(m) }

// TestTrainingBytes: what training a model of Llama-3-8B's shape takes in bfloat16, beside its lanes; and that it is no more than is alive at
// one moment.
func TestTrainingBytes(t *testing.T) {
	cc, err := RandomConfig("llama-3-8b")
	if err != nil {
		t.Fatal(err)
	}
	m := &Model{Backend: shapeBackend{}, Config: cc, Geometry: GeometryOf(cc), Layers: make([]Layer, cc.Layers), Basis: &adapters.Basis{R: 64}}
	for _, c := range []struct {
		plan   SavePlan
		tokens int
		most   int64 // MiB
	}{{RecomputeNone, 4096, 12164}, {RecomputeMLP, 4096, 5035}, {RecomputeLayer, 8192, 3048}} {
		_, l := layTraining(m, TrainingConfig{Plan: c.plan, Tokens: c.tokens, BlockTokens: 4, Blocks: (c.tokens + 64*3) / 4,
			SampleTokens: 2048, SampleRows: 32, SampleBlocks: (2048 + 32*3) / 4})
		bytes, floor := l.place(), floorOf(*l)
		t.Logf("plan %v, %d tokens: %.1f MiB", c.plan, c.tokens, float64(bytes)/(1<<20))
		if bytes > c.most<<20 || bytes > floor {
			t.Errorf("plan %v, %d tokens: %d bytes, want at most %d MiB, and the %d that are alive at one moment", c.plan, c.tokens, bytes, c.most, floor)
		}
	}
}

// shapeBackend is what a layout asks of a device.
type shapeBackend struct{ kernels.Backend }

func (shapeBackend) Info() kernels.Info {
	return kernels.Info{Working: kernels.BF16, Activation: kernels.BF16}
}

func (shapeBackend) LossTokens(int, kernels.Weight) int { return 512 }
