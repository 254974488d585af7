package simd

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
)

var ragged = []int{1, 7, 15, 16, 17, 31, 33, 133, 576, 989}

// each runs f once for every implementation of this machine.
func each(t *testing.T, f func(t *testing.T, k Kernels)) {
	for _, k := range Implementations() {
		t.Run(k.Name, func(t *testing.T) { f(t, k) })
	}
}

func newRand(seed ...int) *rand.Rand {
	s := uint64(7)
	for _, v := range seed {
		s = s*1000003 + uint64(v)
	}
	return rand.New(rand.NewPCG(s, 1))
}

func normal(r *rand.Rand, n int) []float32 {
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(r.NormFloat64())
	}
	return x
}

func bf16(x []float32) []uint16 {
	y := make([]uint16, len(x))
	f32ToBF16(y, x)
	return y
}

// canary is a NaN with a payload that no arithmetic produces.
var canary = math.Float32frombits(0x7fc0dead)

// guarded is a rows×cols matrix of leading dimension ld inside a slice whose other elements are canaries.
type guarded struct {
	all            []float32
	rows, ld, cols int
}

const margin = 40

func newGuarded(rows, ld, cols int) *guarded {
	g := &guarded{make([]float32, 2*margin+(rows-1)*ld+cols), rows, ld, cols}
	for i := range g.all {
		g.all[i] = canary
	}
	for i := range rows {
		for j := range cols {
			g.all[margin+i*ld+j] = float32(i-j) / 16
		}
	}
	return g
}

func (g *guarded) data() []float32 { return g.all[margin : len(g.all)-margin] }

func (g *guarded) row(i int) []float32 { return g.data()[i*g.ld:][:g.cols] }

func (g *guarded) check(t *testing.T) {
	t.Helper()
	for i, v := range g.all {
		p := i - margin
		inside := p >= 0 && p < (g.rows-1)*g.ld+g.cols && p%g.ld < g.cols
		if !inside && math.Float32bits(v) != math.Float32bits(canary) {
			t.Fatalf("element %d outside the matrix was overwritten with %v", p, v)
		}
	}
}

// near fails unless got is within rtol·size of want; size is the sum of the magnitudes that went into want.
func near(t *testing.T, what string, got float32, want, size, rtol float64) {
	t.Helper()
	if d := math.Abs(float64(got) - want); !(d <= rtol*size+1e-37) {
		t.Fatalf("%s: got %v, want %v (off by %.3g, allowed %.3g)", what, got, want, d, rtol*size)
	}
}

func sameBits(t *testing.T, what string, got, want []float32) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: %d elements, want %d", what, len(got), len(want))
	}
	for i := range got {
		if math.Float32bits(got[i]) != math.Float32bits(want[i]) {
			t.Fatalf("%s: element %d is %v (%08x), want %v (%08x)", what, i, got[i], math.Float32bits(got[i]),
				want[i], math.Float32bits(want[i]))
		}
	}
}

// weights is one matrix in the three formats, and the exact float32 values that the two narrow formats stand for.
type weights struct {
	rows, cols, ld, lds int
	f32                 []float32
	bf16                []uint16
	int8                []int8
	scales              []float32
	fromBF16, fromInt8  []float32
}

func newWeights(r *rand.Rand, rows, cols, ld int) weights {
	w := weights{rows: rows, cols: cols, ld: ld, lds: blocks(cols) + 1}
	size := (rows-1)*ld + cols
	w.f32 = normal(r, size)
	w.bf16 = bf16(w.f32)
	w.fromBF16 = make([]float32, size)
	bf16ToF32(w.fromBF16, w.bf16)
	w.int8, w.fromInt8 = make([]int8, size), make([]float32, size)
	w.scales = make([]float32, (rows-1)*w.lds+blocks(cols))
	for i := range rows {
		row, q, s := w.f32[i*ld:][:cols], w.int8[i*ld:][:cols], w.scales[i*w.lds:][:blocks(cols)]
		quantizeInt8(row, q, s)
		for j := range row {
			w.fromInt8[i*ld+j] = float32(q[j]) * s[j/Block]
		}
	}
	return w
}

// format is one weight format of the matrix products, with the float32 weights that it stands for.
type format struct {
	name  string
	exact []float32
	nt    func(y []float32, ldy int, x []float32, ldx int, m, n, k int)
	nn    func(dx []float32, lddx int, dy []float32, lddy int, m, n, k int, accumulate bool)
}

func (w weights) formats(k Kernels) []format {
	return []format{
		{"f32", w.f32, func(y []float32, ldy int, x []float32, ldx int, m, n, kk int) {
			k.DotNTF32(y, ldy, x, ldx, w.f32, w.ld, m, n, kk)
		}, func(dx []float32, lddx int, dy []float32, lddy int, m, n, kk int, acc bool) {
			k.DotNNF32(dx, lddx, dy, lddy, w.f32, w.ld, m, n, kk, acc)
		}},
		{"bf16", w.fromBF16, func(y []float32, ldy int, x []float32, ldx int, m, n, kk int) {
			k.DotNTBF16(y, ldy, x, ldx, w.bf16, w.ld, m, n, kk)
		}, func(dx []float32, lddx int, dy []float32, lddy int, m, n, kk int, acc bool) {
			k.DotNNBF16(dx, lddx, dy, lddy, w.bf16, w.ld, m, n, kk, acc)
		}},
		{"int8", w.fromInt8, func(y []float32, ldy int, x []float32, ldx int, m, n, kk int) {
			k.DotNTInt8(y, ldy, x, ldx, w.int8, w.ld, w.scales, w.lds, m, n, kk)
		}, func(dx []float32, lddx int, dy []float32, lddy int, m, n, kk int, acc bool) {
			k.DotNNInt8(dx, lddx, dy, lddy, w.int8, w.ld, w.scales, w.lds, m, n, kk, acc)
		}},
	}
}

type shape struct{ m, n, k int }

func (s shape) String() string { return fmt.Sprintf("m%d_n%d_k%d", s.m, s.n, s.k) }

// shapes walks ragged sizes without their whole cube.
func shapes() []shape {
	var all []shape
	for _, k := range ragged {
		all = append(all, shape{1, 9, k}, shape{7, 13, k}, shape{3, 1, k}, shape{5, 22, k})
	}
	for _, m := range []int{1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 33} {
		all = append(all, shape{m, 31, 48}, shape{m, 17, 100})
	}
	return append(all, shape{133, 33, 133}, shape{33, 133, 31}, shape{2, 989, 64}, shape{13, 64, 33}, shape{17, 3, 200})
}
