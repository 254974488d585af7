package adapters

import (
	"errors"
	"math/rand/v2"
	"testing"
)

// loras are adapters of rank r with random A's and B's, each module of its own.
func loras(n, r int, seed uint64) []*PEFT {
	random := rand.New(rand.NewPCG(seed, 1))
	noise := func(n int) []float32 {
		v := make([]float32, n)
		for i := range v {
			v[i] = float32(random.NormFloat64())
		}
		return v
	}
	var out []*PEFT
	for range n {
		p := &PEFT{Geometry: small, Rank: r, Alpha: float64(r), Scaling: 1}
		for layer := range small.Layers {
			for proj := Q; proj < NumProjs; proj++ {
				p.Modules = append(p.Modules, PEFTModule{Layer: layer, Proj: proj, Rank: r, Scaling: 1, A: noise(r * small.In(proj.Site())), B: noise(r * small.Out(proj))})
			}
		}
		out = append(out, p)
	}
	return out
}

func TestBestBasis(t *testing.T) {
	kept := func(b *Basis, ps []*PEFT, r int) float64 {
		sum := 0.0
		for _, p := range ps {
			_, report, err := b.Project(p, r)
			if err != nil {
				t.Fatal(err)
			}
			sum += report.Kept
		}
		return sum / float64(len(ps))
	}
	one := loras(1, 2, 1)
	best, err := BestBasis(t.Context(), one, 6, "base")
	if err != nil {
		t.Fatal(err)
	}
	if k := kept(best, one, 6); k < 1-1e-4 { // q, k and v of rank 2 have 6 rows; only bf16's rounding is lost
		t.Errorf("as many rows as the adapter has keep %v", k)
	}
	many := loras(5, 3, 2)
	if best, err = BestBasis(t.Context(), many, 12, "base"); err != nil {
		t.Fatal(err)
	}
	plain, err := NewBasis(t.Context(), BasisConfig{Geometry: small, R: 12})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []int{1, 4, 12} {
		if b, p := kept(best, many, r), kept(plain, many, r); b <= p {
			t.Errorf("%d rows: the best keep %v, random ones %v", r, b, p)
		}
	}
	// Optimal: the share kept of a site is that of its leading eigenvalues, so no other adapter's own rows do better.
	for _, p := range many {
		own, err := BestBasis(t.Context(), []*PEFT{p}, 12, "base")
		if err != nil {
			t.Fatal(err)
		}
		if a, b := kept(own, many, 12), kept(best, many, 12); a > b {
			t.Errorf("one adapter's rows keep %v, the best %v", a, b)
		}
	}
	if _, err := BestBasis(t.Context(), many, 25, ""); !errors.Is(err, ErrRank) {
		t.Errorf("more rows than a site's input: %v", err)
	}
	only := &PEFT{Geometry: small, Rank: 1, Scaling: 1, Modules: one[0].Modules[:1]}
	if _, err := BestBasis(t.Context(), []*PEFT{only}, 4, ""); err != nil {
		t.Errorf("an adapter of one module: %v", err)
	}
}
