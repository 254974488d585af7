package cpu

import (
	"math"
	"slices"
	"testing"

	"bhive/kernels"
)

func (r *rig) lanes(rows int, scaling float32) (kernels.LaneTable, []kernels.Tensor) {
	t, err := r.NewLaneTable(len(ranks))
	if err != nil {
		r.Fatal(err)
	}
	var grads []kernels.Tensor
	for i, rank := range ranks {
		g := r.random(1, rank*rows, 1)
		r.SetLane(r.s, t, i, g, rank, scaling)
		grads = append(grads, g)
	}
	return t, grads
}

func TestLinearBackward(t *testing.T) {
	for _, d := range []kernels.DType{kernels.F32, kernels.BF16} {
		for _, f := range []kernels.Format{kernels.FormatF32, kernels.FormatBF16, kernels.FormatInt8} {
			for _, m := range []int{1, 7, 133} {
				for _, accumulate := range []bool{false, true} {
					r := newRig(t, Config{Threads: 2, Working: d})
					const out, in, a = 149, 205, 11
					w := r.weight(out, in, a, f)
					b := r.step(9, seq{n: m, adapter: -1, lane: -1})
					dyz := r.random(m+2, out+a, 1)
					dx := r.garbage(m+2, in)
					if accumulate {
						dx = r.random(m+2, in, 1)
					}
					old := append([]float32(nil), values(dx)...)
					r.LinearBackward(r.s, dx, dyz, w, accumulate, b.step)
					wide := r.wide(w)
					for i := range m {
						want := make([]float64, in)
						for j := range want {
							if accumulate {
								want[j] = float64(old[i*in+j])
							}
							for n := range out + a {
								want[j] += float64(values(dyz)[i*(out+a)+n]) * wide[n][j]
							}
						}
						near(t, "dx", values(dx)[i*in:], want, 5e-5)
					}
				}
			}
		}
	}
}

func TestExpandBackward(t *testing.T) {
	mixes(t, func(r *rig, seqs []seq) {
		const out, rows = 83, 90
		b := r.step(9, seqs...)
		m := b.step.Bucket.Tokens
		lanes, grads := r.lanes(rows, 1.5)
		a := kernels.ExpandBackwardArgs{DYZ: r.random(m, out+testR, 1), Z: r.workingTensor(m, testR, r.normal(m*testR, 1)),
			B:    kernels.BRef{Table: r.adapters(rows, ranks...), Offset: 4, Out: out},
			Grad: kernels.GradRef{Table: lanes, Offset: 4, Out: out}}
		dy := append([]float32(nil), values(a.DYZ)...)
		z := r.widened(r.workingOf(a.Z, "z"), m*testR)
		inPlace := a // with z where dz goes
		inPlace.DYZ = r.tensor(m, out+testR, dy)
		inPlace.Z = inPlace.DYZ.ColRange(out, out+testR)
		for i := range m {
			copy(values(inPlace.DYZ)[i*(out+testR)+out:], z[i*testR:][:testR])
		}
		lanes, again := r.lanes(rows, 1.5)
		for i := range grads {
			copy(values(again[i]), values(grads[i]))
		}
		inPlace.Grad.Table = lanes
		want := make([][]float64, len(grads))
		for i := range want {
			want[i] = f64(values(grads[i]))
		}
		r.ExpandBackward(r.s, a, b.step)
		for i := range b.tokens() {
			dz := make([]float64, testR)
			if slot := b.rec.Adapter[i]; slot >= 0 {
				e := a.B.Table.(*adapterTable).entries[slot]
				for n := range out {
					g := float64(dy[i*(out+testR)+n])
					for j, v := range r.widened(e.block.at(e.rank*(4+n)), e.rank) {
						dz[j] += g * float64(v)
						want[slot][e.rank*(4+n)+j] += 1.5 * g * float64(z[i*testR+j])
					}
				}
			}
			near(r, "dz", values(a.DYZ)[i*(out+testR)+out:], dz, tol)
		}
		r.ExpandBackward(r.s, inPlace, b.step)
		if n := b.tokens() * (out + testR); !slices.Equal(values(inPlace.DYZ)[:n], values(a.DYZ)[:n]) {
			r.Error("dz differs in the place of z")
		}
		for l := range grads {
			if !slices.Equal(values(again[l]), values(grads[l])) {
				r.Errorf("dB of lane %d differs with z in the place of dz", l)
			}
			near(r, "dB", values(grads[l]), want[l], 5e-5)
		}
	})
}

// slope is the central difference of f by x[i].
func slope(f func() float64, x []float64, i int) float64 {
	const h = 1e-4
	old := x[i]
	x[i] = old + h
	up := f()
	x[i] = old - h
	down := f()
	x[i] = old
	return (up - down) / (2 * h)
}

func TestNormBackward(t *testing.T) {
	for _, m := range []int{1, 7, 133} {
		r := newRig(t, Config{Threads: 2})
		const h = 21
		b := r.step(9, seq{n: m, adapter: -1, lane: -1})
		x, w, dy, dx := r.random(m+2, h, 1), r.random(1, h, 1), r.random(m+2, h, 1), r.random(m+2, h, 1)
		y, rstd := r.garbage(m+2, h), r.garbage(1, m+2)
		r.RMSNorm(r.s, y, x, w, rstd, 1e-3, b.step)
		old := f64(values(dx))
		r.NormBackward(r.s, dx, dy, x, w, rstd, b.step)
		for i := range m {
			row := f64(values(x)[i*h:][:h])
			loss := func() float64 {
				y := append([]float64(nil), row...)
				norm64(y, values(w), 1e-3)
				return dot64(y, f64(values(dy)[i*h:][:h]))
			}
			want := make([]float64, h)
			for j := range want {
				want[j] = old[i*h+j] + slope(loss, row, j)
			}
			near(t, "dx", values(dx)[i*h:], want, tol)
		}
	}
}

func TestMLPBackward(t *testing.T) {
	for _, m := range []int{1, 7, 133} {
		r := newRig(t, Config{Threads: 2})
		const f = 19
		b := r.step(9, seq{n: m, adapter: -1, lane: -1})
		gu, da, act := r.random(m+2, 2*f, 2), r.random(m+2, f, 1), r.garbage(m+2, f)
		in := f64(values(gu))
		r.MLPForward(r.s, act, gu, b.step)
		r.MLPBackward(r.s, gu, da, gu, b.step)
		silu := func(g float64) float64 { return g / (1 + math.Exp(-g)) }
		for i := range m {
			row := in[i*2*f:][:2*f]
			for j := range f {
				near(t, "act", values(act)[i*f+j:], []float64{silu(row[j]) * row[f+j]}, tol)
				loss := func() float64 { return float64(values(da)[i*f+j]) * silu(row[j]) * row[f+j] }
				near(t, "dg", values(gu)[i*2*f+j:], []float64{slope(loss, row, j)}, tol)
				near(t, "du", values(gu)[i*2*f+f+j:], []float64{slope(loss, row, f+j)}, tol)
			}
		}
	}
}

func TestQKVBackward(t *testing.T) {
	for _, norms := range []bool{false, true} {
		for _, m := range []int{1, 7, 133} {
			r := newRig(t, Config{Threads: 2})
			d := testD
			nq, nkv, out := testHq*d, testHkv*d, (testHq+2*testHkv)*d
			b := r.step(9, seq{n: m, context: 3, adapter: -1, lane: -1})
			a := kernels.QKVBackwardArgs{DY: r.garbage(m+2, out), DQ: r.random(m+2, nq, 1), DK: r.random(m+2, nkv, 1), DV: r.random(m+2, nkv, 1),
				Rope: r.ropeTable(200, d), Eps: 1e-3, Heads: testHq, KVHeads: testHkv}
			pre := r.random(m+2, nq+nkv, 1)
			if norms {
				a.QNorm, a.KNorm, a.Pre = r.random(1, d, 1), r.random(1, d, 1), pre
			}
			r.QKVBackward(r.s, a, b.step)
			for i := range m {
				y := f64(values(pre)[i*(nq+nkv):][:nq+nkv])
				g := append(f64(values(a.DQ)[i*nq:][:nq]), f64(values(a.DK)[i*nkv:][:nkv])...)
				want := make([]float64, nq+nkv)
				for h := range testHq + testHkv {
					row := y[h*d:][:d]
					loss := func() float64 {
						x := append([]float64(nil), row...)
						if w := a.QNorm; norms && h < testHq {
							norm64(x, values(w), 1e-3)
						} else if norms {
							norm64(x, values(a.KNorm), 1e-3)
						}
						rotate64(x, values(a.Rope)[(i+3)*d:][:d])
						return dot64(x, g[h*d:][:d])
					}
					for j := range d {
						want[h*d+j] = slope(loss, row, j)
					}
				}
				near(t, "dy", values(a.DY)[i*out:], want, tol)
				near(t, "dv", values(a.DY)[i*out+nq+nkv:], f64(values(a.DV)[i*nkv:][:nkv]), 0)
			}
		}
	}
}

func TestGram(t *testing.T) {
	for _, m := range []int{1, 7, 133} {
		r := newRig(t, Config{Threads: 2})
		const in = 67
		b := r.step(9, seq{n: m, adapter: -1, lane: -1})
		x, c := r.random(m+2, in, 1), r.random(in, in, 1)
		want := f64(values(c))
		for i := range m {
			b.rec.Label[i] = int32(i%4 - 1)
			for p := range in {
				for q := range in {
					if i%4 > 0 {
						want[p*in+q] += float64(values(x)[i*in+p]) * float64(values(x)[i*in+q])
					}
				}
			}
		}
		r.Gram(r.s, c, x, b.step)
		near(t, "c", values(c), want, tol)
	}
}

func TestCopyZero(t *testing.T) {
	r := newRig(t, Config{})
	src := r.random(5, 9, 1)
	half, back := r.alloc(kernels.BF16, 5, 4), r.garbage(5, 9)
	r.Copy(r.s, half, src.ColRange(3, 7))
	r.Copy(r.s, back.ColRange(1, 5), half)
	r.Zero(r.s, back.ColRange(5, 9))
	for i := range 5 {
		got := values(back)[i*9:][:9]
		near(t, "copied", got[1:5], f64(values(src)[i*9+3:][:4]), 4e-3)
		near(t, "zeroed", got[5:], make([]float64, 4), 0)
		if got[0] == got[0] {
			t.Fatal("a column outside the view is written")
		}
	}
}
