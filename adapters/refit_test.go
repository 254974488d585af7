package adapters

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
)

// inputs are x's that lie near a few directions, as activations do: [n][in].
func inputs(n, in int, seed uint64) [][]float64 {
	random := rand.New(rand.NewPCG(seed, 3))
	axes := make([][]float64, 5)
	for i := range axes {
		axes[i] = make([]float64, in)
		for j := range axes[i] {
			axes[i][j] = random.NormFloat64()
		}
	}
	xs := make([][]float64, n)
	for i := range xs {
		xs[i] = make([]float64, in)
		for _, axis := range axes {
			w := 3 * random.NormFloat64()
			for j := range axis {
				xs[i][j] += w * axis[j]
			}
		}
		for j := range xs[i] {
			xs[i][j] += 0.3 * random.NormFloat64()
		}
	}
	return xs
}

func secondMoment(xs [][]float64) []float64 {
	in := len(xs[0])
	c := make([]float64, in*in)
	for _, x := range xs {
		for i, a := range x {
			for j, b := range x {
				c[i*in+j] += a * b / float64(len(xs))
			}
		}
	}
	return c
}

// outputError is Σ‖s·B·A·x − s·B′·A′·x‖² / Σ‖s·B′·A′·x‖² of one module, computed from the inputs themselves.
func outputError(b *Basis, w *Weights, m PEFTModule, xs [][]float64) float64 {
	in := len(xs[0])
	a := b.A(m.Layer, m.Proj.Site())
	fit := w.Module(m.Layer, m.Proj)
	var wrong, all float64
	for _, x := range xs {
		z, y := make([]float64, w.Rank), make([]float64, m.Rank)
		for i, v := range x {
			for j := range z {
				z[j] += v * float64(fromBF16(a[j*in+i]))
			}
			for j := range y {
				y[j] += v * float64(m.A[j*in+i])
			}
		}
		for o := range len(m.B) / m.Rank {
			var is, ought float64
			for j, v := range z {
				is += w.Scaling * v * float64(fit[o*w.Rank+j])
			}
			for j, v := range y {
				ought += m.Scaling * v * float64(m.B[o*m.Rank+j])
			}
			wrong, all = wrong+(is-ought)*(is-ought), all+ought*ought
		}
	}
	return wrong / all
}

func TestRefit(t *testing.T) {
	b, err := NewBasis(t.Context(), BasisConfig{Geometry: small, R: 8})
	if err != nil {
		t.Fatal(err)
	}
	p := loras(1, 3, 4)[0]
	p.Scaling = 2
	for i := range p.Modules {
		p.Modules[i].Scaling = 2
	}
	p.Modules[3].Scaling = 0.5 // of a pattern
	texts := map[Site][][]float64{}
	for s := AttnIn; s < NumSites; s++ {
		texts[s] = inputs(200, small.In(s), uint64(s))
	}
	cov := func(_ int, s Site) []float64 { return secondMoment(texts[s]) }
	w, report, err := b.Refit(t.Context(), p, RefitConfig{Cov: cov})
	if err != nil {
		t.Fatal(err)
	}
	if w.Rank != 8 || w.Scaling != 2 || report.Exact {
		t.Fatalf("rank %d, scaling %v, exact %v", w.Rank, w.Scaling, report.Exact)
	}
	projected, _, err := b.Project(p, 8)
	if err != nil {
		t.Fatal(err)
	}
	random := rand.New(rand.NewPCG(5, 5))
	for i, m := range p.Modules {
		xs := texts[m.Proj.Site()]
		lost := outputError(b, w, m, xs)
		if kept := report.Modules[i]; kept.Layer != m.Layer || kept.Proj != m.Proj || math.Abs(1-kept.Kept-lost) > 1e-5 {
			t.Errorf("%v: the report says that %v is kept, the outputs that %v is lost", m, kept.Kept, lost)
		}
		if before := outputError(b, projected, m, xs); lost > before/2 {
			t.Errorf("%v: refit loses %v of the outputs, projected %v", m, lost, before)
		}
		// No B is nearer.
		fit := w.Module(m.Layer, m.Proj)
		for range 3 {
			saved := append([]float32(nil), fit...)
			for j := range fit {
				fit[j] *= 1 + 0.02*float32(random.NormFloat64())
			}
			if other := outputError(b, w, m, xs); other < lost {
				t.Errorf("%v: another B loses %v, the fit %v", m, other, lost)
			}
			copy(fit, saved)
		}
	}
}

// Inputs of no direction leave nothing to know: over orthonormal rows the refit is the projection.
func TestRefitOfNoise(t *testing.T) {
	b, err := NewBasis(t.Context(), BasisConfig{Geometry: small, R: 8})
	if err != nil {
		t.Fatal(err)
	}
	p := loras(1, 3, 6)[0]
	cov := func(_ int, s Site) []float64 {
		in := small.In(s)
		c := make([]float64, in*in)
		for i := range in {
			c[i*in+i] = 1
		}
		return c
	}
	w, report, err := b.Refit(t.Context(), p, RefitConfig{Rank: 6, Cov: cov, Ridge: 1e-12})
	if err != nil {
		t.Fatal(err)
	}
	want, projection, err := b.Project(p, 6)
	if err != nil {
		t.Fatal(err)
	}
	for i := range w.Data {
		if math.Abs(float64(w.Data[i]-want.Data[i])) > 1e-4 {
			t.Fatalf("element %d: refit %v, projected %v", i, w.Data[i], want.Data[i])
		}
	}
	if math.Abs(report.Kept-projection.Kept) > 1e-6 {
		t.Errorf("refit keeps %v, the projection %v", report.Kept, projection.Kept)
	}
	// A site whose inputs never were anything gets a B of zeros, not of NaNs.
	w, _, err = b.Refit(t.Context(), p, RefitConfig{Cov: func(_ int, s Site) []float64 { return make([]float64, small.In(s)*small.In(s)) }})
	if err != nil {
		t.Fatal(err)
	}
	for i, v := range w.Data {
		if v != 0 {
			t.Fatalf("element %d is %v", i, v)
		}
	}
}

func TestRefitRefuses(t *testing.T) {
	b, err := NewBasis(t.Context(), BasisConfig{Geometry: small, R: 8, BaseHash: "base"})
	if err != nil {
		t.Fatal(err)
	}
	cov := func(_ int, s Site) []float64 { return make([]float64, small.In(s)*small.In(s)) }
	p := loras(1, 2, 1)[0]
	if _, _, err := b.Refit(t.Context(), p, RefitConfig{Rank: 9, Cov: cov}); !errors.Is(err, ErrRank) {
		t.Errorf("rank over R: %v", err)
	}
	p.BaseHash = "another"
	if _, _, err := b.Refit(t.Context(), p, RefitConfig{Cov: cov}); !errors.Is(err, ErrBaseMismatch) {
		t.Errorf("another base: %v", err)
	}
	p.BaseHash, p.Geometry.Layers = "", 99
	if _, _, err := b.Refit(t.Context(), p, RefitConfig{Cov: cov}); !errors.Is(err, ErrBaseMismatch) {
		t.Errorf("another geometry: %v", err)
	}
	p.Geometry = small
	for _, bad := range []float64{math.NaN(), math.Inf(1)} { // a model that overflowed on a text; it must not be tried for ever
		broken := func(l int, s Site) []float64 { c := cov(l, s); c[3] = bad; return c }
		if _, _, err := b.Refit(t.Context(), p, RefitConfig{Cov: broken}); err == nil || !strings.Contains(err.Error(), "not finite") {
			t.Errorf("moments with %v: %v", bad, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := b.Refit(ctx, p, RefitConfig{Cov: cov}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}
