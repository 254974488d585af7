package simd

import (
	"math"
	"testing"
)

func guardedVector(x []float32) *guarded {
	g := newGuarded(1, len(x), len(x))
	copy(g.data(), x)
	return g
}

func TestDotAndAxpy(t *testing.T) {
	each(t, func(t *testing.T, k Kernels) {
		for _, n := range ragged {
			r := newRand(n)
			x, y := normal(r, n), normal(r, n)
			h := bf16(y)
			wide := make([]float32, n)
			bf16ToF32(wide, h)
			for _, c := range []struct {
				got float32
				b   []float32
			}{{k.DotF32(x, y), y}, {k.DotBF16(x, h), wide}, {k.SumSquares(x), x}} {
				var want, size float64
				for i := range x {
					p := float64(x[i]) * float64(c.b[i])
					want, size = want+p, size+math.Abs(p)
				}
				near(t, "dot", c.got, want, size, 2e-6)
			}
			a, b := guardedVector(x), guardedVector(x)
			k.AxpyF32(a.data(), 0.75, y)
			k.AxpyBF16(b.data(), 0.75, h)
			a.check(t)
			b.check(t)
			for i := range x {
				near(t, "axpy f32", a.row(0)[i], float64(x[i])+0.75*float64(y[i]), 4, 1e-7)
				near(t, "axpy bf16", b.row(0)[i], float64(x[i])+0.75*float64(wide[i]), 4, 1e-7)
			}
			var dot [1]float32
			k.DotNTF32(dot[:], 1, x, n, y, n, 1, 1, n)
			sameBits(t, "DotNT is Dot", []float32{k.DotF32(x, y)}, dot[:])
			row := append([]float32(nil), x...)
			k.DotNNF32(row, n, []float32{0.75}, 1, y, n, 1, 1, n, true)
			sameBits(t, "DotNN is Axpy", a.row(0), row)
		}
	})
}

func TestSoftmax(t *testing.T) {
	each(t, func(t *testing.T, k Kernels) {
		for _, n := range ragged {
			x := normal(newRand(n), n)
			for i := range x {
				x[i] *= 20
			}
			max := x[k.ArgMax(x)]
			var want float64
			for _, v := range x {
				want += math.Exp(float64(v - max))
			}
			gotMax, gotSum := k.ExpSumMax(x)
			if gotMax != max {
				t.Fatalf("n %d: max %v, want %v", n, gotMax, max)
			}
			g := guardedVector(x)
			sum := k.SoftmaxExp(g.data(), max)
			g.check(t)
			near(t, "sum", sum, want, want, 1e-6)
			sameBits(t, "ExpSumMax", []float32{gotSum}, []float32{sum})
			for i, v := range x {
				e := math.Exp(float64(v - max))
				near(t, "exp", g.row(0)[i], e, e, 2.4e-7)
				// The same bits at another place of another vector.
				one := []float32{v}
				k.SoftmaxExp(one, max)
				sameBits(t, "alone", one, g.row(0)[i:][:1])
			}
		}
	})
}

func TestExpAccuracy(t *testing.T) {
	each(t, func(t *testing.T, k Kernels) {
		const n = 200_000
		x, y := make([]float32, n), make([]float32, n)
		for i := range x {
			x[i] = -87.3 + 176*float32(i)/n
		}
		copy(y, x)
		k.SoftmaxExp(y, 0)
		var worst float64
		for i := range x {
			e := math.Exp(float64(x[i]))
			ulp := float64(math.Nextafter32(float32(e), math.MaxFloat32) - float32(e))
			worst = math.Max(worst, math.Abs(float64(y[i])-e)/ulp)
		}
		if worst > 2 {
			t.Fatalf("worst error of exp is %.2f ulp", worst)
		}
		edge := []float32{0, -105, -1000, float32(math.Inf(-1)), 89, float32(math.Inf(1)), float32(math.NaN())}
		k.SoftmaxExp(edge, 0)
		inf := float32(math.Inf(1))
		sameBits(t, "edges", edge[:6], []float32{1, 0, 0, 0, inf, inf})
		if edge[6] == edge[6] {
			t.Fatalf("exp(NaN) = %v", edge[6])
		}
	})
}

func TestArgMax(t *testing.T) {
	nan, inf := float32(math.NaN()), float32(math.Inf(1))
	each(t, func(t *testing.T, k Kernels) {
		for _, c := range []struct {
			x    []float32
			want int
		}{
			{nil, 0}, {[]float32{-inf, -inf}, 0}, {[]float32{nan, nan}, 0}, {[]float32{nan, 1, nan}, 1},
			{[]float32{1, 2, 2}, 1}, {[]float32{-3, -2, -9}, 1}, {[]float32{1, inf, nan, inf}, 1},
			{[]float32{float32(math.Copysign(0, -1)), 0}, 0},
		} {
			if got := k.ArgMax(c.x); got != c.want {
				t.Errorf("ArgMax(%v) = %d, want %d", c.x, got, c.want)
			}
		}
		for _, n := range ragged {
			r := newRand(n)
			x := normal(r, n)
			for range 20 {
				a, b := r.IntN(n), r.IntN(n)
				x[a], x[b] = 100, 100
				if n > 2 {
					x[r.IntN(n)] = nan
				}
				want := argMax(x)
				if got := k.ArgMax(x); got != want {
					t.Fatalf("n %d: ArgMax %d, want %d", n, got, want)
				}
			}
		}
		if max, sum := k.ExpSumMax([]float32{-inf, -inf}); max != -inf || sum != 0 {
			t.Errorf("ExpSumMax of −Inf only is %v, %v", max, sum)
		}
	})
}

func TestSilu(t *testing.T) {
	each(t, func(t *testing.T, k Kernels) {
		for _, n := range ragged {
			r := newRand(n)
			gate, up, da := normal(r, n), normal(r, n), normal(r, n)
			for i := range gate {
				gate[i] *= 6
			}
			dst, dgate, dup := guardedVector(gate), guardedVector(gate), guardedVector(gate)
			k.SiluMul(dst.data(), gate, up)
			k.SiluMulBackward(dgate.data(), dup.data(), da, gate, up)
			for _, g := range []*guarded{dst, dgate, dup} {
				g.check(t)
			}
			for i := range gate {
				g, u, d := float64(gate[i]), float64(up[i]), float64(da[i])
				s := 1 / (1 + math.Exp(-g))
				near(t, "silu", dst.row(0)[i], g*s*u, math.Abs(g*s*u), 5e-7)
				near(t, "dup", dup.row(0)[i], d*g*s, math.Abs(d*g*s), 5e-7)
				near(t, "dgate", dgate.row(0)[i], d*u*s*(1+g*(1-s)), math.Abs(d*u*s)*(1+math.Abs(g)), 1e-6)
			}
			in := append([]float32(nil), gate...)
			k.SiluMul(in, in, up)
			sameBits(t, "in place", in, dst.row(0))
			a, b := append([]float32(nil), gate...), append([]float32(nil), up...)
			k.SiluMulBackward(a, b, da, a, b)
			sameBits(t, "dgate in place", a, dgate.row(0))
			sameBits(t, "dup in place", b, dup.row(0))
		}
		edge := []float32{200, -200, 0}
		k.SiluMul(edge, edge, []float32{1, 1, 1})
		if edge[0] != 200 || edge[1] != 0 || edge[2] != 0 {
			t.Errorf("silu(200, −200, 0) = %v", edge)
		}
	})
}

// TestExactVectors holds the elementwise operations without a transcendental to the portable ones, bit for bit.
func TestExactVectors(t *testing.T) {
	each(t, func(t *testing.T, k Kernels) {
		for _, n := range ragged {
			r := newRand(n)
			x, y := normal(r, n), normal(r, n)
			for _, c := range []struct {
				name string
				f    func(k Kernels, g []float32)
			}{
				{"ScaleMul", func(k Kernels, g []float32) { k.ScaleMul(g, x, 0.3, y) }},
				{"Add", func(k Kernels, g []float32) { k.Add(g, y) }},
				{"Scale", func(k Kernels, g []float32) { k.Scale(g, 0.3) }},
				{"RoundBF16InPlace", func(k Kernels, g []float32) { k.RoundBF16InPlace(g) }},
				{"BF16ToF32", func(k Kernels, g []float32) { k.BF16ToF32(g, bf16(y)) }},
			} {
				got, want := guardedVector(x), guardedVector(x)
				c.f(k, got.data())
				c.f(portable, want.data())
				sameBits(t, c.name, got.all, want.all)
			}
		}
	})
}

func TestBF16Rounding(t *testing.T) {
	bits := []uint32{0, 0x80000000, 0x3f800000, 0x3f808000, 0x3f818000, 0x3f808001, 0x3f807fff, 0x7f7fffff, 0x7f800000,
		0xff800000, 0x7fc00000, 0x7f800001, 0xffffffff, 1, 0x8000, 0x8001, 0x00018000}
	r := newRand(3)
	for range 5000 {
		bits = append(bits, r.Uint32())
	}
	each(t, func(t *testing.T, k Kernels) {
		x := make([]float32, len(bits))
		for i, b := range bits {
			x[i] = math.Float32frombits(b)
		}
		got := make([]uint16, len(x)+8)
		for i := range got {
			got[i] = 0xdead
		}
		k.F32ToBF16(got[4:], x)
		back := append([]float32(nil), x...)
		k.RoundBF16InPlace(back)
		for i, b := range bits {
			want := uint16(0)
			switch {
			case b&0x7fffffff > 0x7f800000:
				want = uint16(b>>16) | 0x40
			default:
				want = uint16(b >> 16)
				if low := b & 0xffff; low > 0x8000 || low == 0x8000 && want&1 == 1 {
					want++
				}
			}
			if got[4+i] != want {
				t.Fatalf("%08x rounds to %04x, want %04x", b, got[4+i], want)
			}
			if math.Float32bits(back[i]) != uint32(want)<<16 {
				t.Fatalf("%08x in place is %08x, want %04x0000", b, math.Float32bits(back[i]), want)
			}
		}
		for _, i := range []int{0, 1, 2, 3, len(got) - 4, len(got) - 1} {
			if got[i] != 0xdead {
				t.Fatalf("F32ToBF16 wrote outside at %d", i)
			}
		}
	})
}

func TestRope(t *testing.T) {
	each(t, func(t *testing.T, k Kernels) {
		for _, d := range []int{2, 14, 32, 34, 64, 80, 128, 256} {
			x := normal(newRand(d), d)
			cos, sin := make([]float32, d/2), make([]float32, d/2)
			for i := range cos {
				s, c := math.Sincos(float64(i) * 0.7)
				cos[i], sin[i] = float32(c), float32(s)
			}
			g := guardedVector(x)
			k.Rope(g.data(), cos, sin)
			g.check(t)
			for i := range cos {
				a, b, c, s := float64(x[i]), float64(x[i+d/2]), float64(cos[i]), float64(sin[i])
				near(t, "rope a", g.row(0)[i], a*c-b*s, math.Abs(a)+math.Abs(b), 2e-7)
				near(t, "rope b", g.row(0)[i+d/2], b*c+a*s, math.Abs(a)+math.Abs(b), 2e-7)
			}
			k.RopeInverse(g.data(), cos, sin)
			g.check(t)
			for i := range x {
				near(t, "inverse", g.row(0)[i], float64(x[i]), math.Abs(float64(x[i]))+1, 5e-7)
			}
		}
	})
}

func TestAdamW(t *testing.T) {
	each(t, func(t *testing.T, k Kernels) {
		for _, n := range ragged {
			r := newRand(n)
			w, m, v := guardedVector(normal(r, n)), guardedVector(make([]float32, n)), guardedVector(make([]float32, n))
			ref := make([][3]float64, n)
			for i := range ref {
				ref[i][0] = float64(w.row(0)[i])
			}
			const lr, b1, b2, eps, decay = 1e-2, 0.9, 0.999, 1e-8, 0.01
			for step := 1; step <= 3; step++ {
				g := normal(r, n)
				bias1, bias2 := 1-math.Pow(b1, float64(step)), 1-math.Pow(b2, float64(step))
				k.AdamW(w.data(), m.data(), v.data(), g, lr, b1, b2, eps, float32(bias1), float32(bias2), decay)
				for i := range ref {
					p, gi := &ref[i], float64(g[i])
					p[1] = b1*p[1] + (1-b1)*gi
					p[2] = b2*p[2] + (1-b2)*gi*gi
					p[0] = p[0]*(1-lr*decay) - lr*(p[1]/bias1)/(math.Sqrt(p[2]/bias2)+eps)
				}
			}
			for _, g := range []*guarded{w, m, v} {
				g.check(t)
			}
			for i := range ref {
				near(t, "w", w.row(0)[i], ref[i][0], math.Abs(ref[i][0])+0.03, 1e-5)
				near(t, "m", m.row(0)[i], ref[i][1], 1, 1e-6)
				near(t, "v", v.row(0)[i], ref[i][2], math.Abs(ref[i][2]), 2e-4) // 1−beta2 in float32
			}
		}
	})
}

func TestQuantizeInt8(t *testing.T) {
	each(t, func(t *testing.T, k Kernels) {
		for _, n := range ragged {
			row := normal(newRand(n), n)
			if n > 64 {
				clear(row[32:64])
			}
			q, s := make([]int8, n), make([]float32, blocks(n))
			k.QuantizeInt8(row, q, s)
			wantQ, wantS := make([]int8, n), make([]float32, blocks(n))
			quantizeInt8(row, wantQ, wantS)
			sameBits(t, "scales", s, wantS)
			for i := range q {
				if q[i] != wantQ[i] {
					t.Fatalf("n %d: q[%d] = %d, want %d", n, i, q[i], wantQ[i])
				}
				near(t, "dequantised", float32(q[i])*s[i/Block], float64(row[i]), float64(s[i/Block]), 0.5001)
			}
		}
	})
}
