package cpu

import (
	"math"
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
		for l := range grads {
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

// TestAttentionBackward holds the op against the gradient in float64, written from the softmax's definition; and that
// against finite differences at some elements.
func TestAttentionBackward(t *testing.T) {
	for _, d := range []kernels.DType{kernels.F32, kernels.BF16} {
		for _, window := range []int{0, 9} {
			for _, ls := range [][]int{{1}, {3, 4}, {90, 1, 42}} {
				r := newRig(t, Config{Threads: 2, Working: d})
				var seqs []seq
				for _, n := range ls {
					seqs = append(seqs, seq{n: n, adapter: -1, lane: -1})
				}
				b := r.step(9, seqs...)
				m, hd := b.step.Bucket.Tokens, testHq*testD
				c := r.cache(b, 2)
				r.fillCache(c)
				q, do := r.random(m, hd, 1), r.random(m, hd, 1)
				f := kernels.AttentionArgs{Out: r.garbage(m, hd), Q: q, Cache: c, Layer: 1, Scale: 0.4, Window: window, LSE: r.garbage(m, testHq)}
				r.Attention(r.s, f, b.step)
				a := kernels.AttentionBackwardArgs{DQ: r.garbage(m, hd), DK: r.garbage(m, c.width), DV: r.garbage(m, c.width), DO: do, O: f.Out, Q: q,
					LSE: f.LSE, Cache: c, Layer: 1, Scale: 0.4, Window: window}
				r.AttentionBackward(r.s, a, b.step)

				k, v := make([]float64, m*c.width), make([]float64, m*c.width)
				for i := range b.tokens() {
					at := int(b.rec.KVSlot[i]) * c.width
					copy(k[i*c.width:], f64(r.widened(c.k[1].at(at), c.width)))
					copy(v[i*c.width:], f64(r.widened(c.v[1].at(at), c.width)))
				}
				q64, do64 := f64(values(q)), f64(values(do))
				// head gives the probabilities of a query's head over tokens [lo, i].
				head := func(i, h int) (lo int, p []float64) {
					lo = int(b.rec.QueryStart[b.rec.Seq[i]])
					if window > 0 {
						lo = max(lo, i-window+1)
					}
					sum := 0.0
					for j := lo; j <= i; j++ {
						e := math.Exp(0.4 * dot64(q64[(i*testHq+h)*testD:][:testD], k[j*c.width+h/3*testD:][:testD]))
						p, sum = append(p, e), sum+e
					}
					for j := range p {
						p[j] /= sum
					}
					return lo, p
				}
				dq, dk, dv := make([]float64, m*hd), make([]float64, m*c.width), make([]float64, m*c.width)
				for i := range b.tokens() {
					for h := range testHq {
						lo, p := head(i, h)
						x := (i*testHq + h) * testD
						g := do64[x:][:testD]
						mean := 0.0
						for j := range p {
							mean += p[j] * dot64(g, v[(lo+j)*c.width+h/3*testD:][:testD])
						}
						for j := range p {
							at := (lo+j)*c.width + h/3*testD
							ds := p[j] * (dot64(g, v[at:][:testD]) - mean) * 0.4
							for e := range testD {
								dv[at+e] += p[j] * g[e]
								dk[at+e] += ds * q64[x+e]
								dq[x+e] += ds * k[at+e]
							}
						}
					}
				}
				n := b.tokens()
				near(t, "dq", values(a.DQ), dq[:n*hd], 5e-5)
				near(t, "dk", values(a.DK), dk[:n*c.width], 5e-5)
				near(t, "dv", values(a.DV), dv[:n*c.width], 5e-5)
				if n > 7 {
					continue
				}
				loss := func() float64 {
					sum := 0.0
					for i := range n {
						for h := range testHq {
							lo, p := head(i, h)
							for j := range p {
								sum += p[j] * dot64(do64[(i*testHq+h)*testD:][:testD], v[(lo+j)*c.width+h/3*testD:][:testD])
							}
						}
					}
					return sum
				}
				for i := 0; i < n*hd; i += 7 {
					near(t, "dq", values(a.DQ)[i:], []float64{slope(loss, q64, i)}, 5e-5)
				}
				for i := 0; i < n*c.width; i += 7 {
					near(t, "dk", values(a.DK)[i:], []float64{slope(loss, k, i)}, 5e-5)
					near(t, "dv", values(a.DV)[i:], []float64{slope(loss, v, i)}, 5e-5)
				}
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

func TestCrossEntropy(t *testing.T) {
	for _, f := range []kernels.Format{kernels.FormatF32, kernels.FormatBF16, kernels.FormatInt8} {
		for _, m := range []int{1, 7, 133} {
			r := newRig(t, Config{Threads: 2})
			const h, vocab = 23, 151
			w := r.weight(vocab, h, 0, f)
			b := r.step(vocab, seq{n: m, adapter: -1, lane: -1})
			for i := range m {
				b.rec.Label[i] = int32(r.rng.IntN(vocab))
				if i%5 == 2 {
					b.rec.Label[i] = -1
				}
				b.rec.Loss[i] = kernels.Bits(float32(r.rng.Float64()))
			}
			x, dx := r.random(m+2, h, 1), r.garbage(m+2, h)
			nll, alone := r.garbage(1, m+2), r.garbage(1, m+2)
			r.CrossEntropy(r.s, nll, dx, x, w, b.step)
			r.CrossEntropy(r.s, alone, kernels.Tensor{}, x, w, b.step)
			wide := r.wide(w)
			for i := range m {
				row, label := f64(values(x)[i*h:][:h]), b.rec.Label[i]
				loss := func() float64 {
					if label < 0 {
						return 0
					}
					sum := 0.0
					for _, e := range wide {
						sum += math.Exp(dot64(row, e))
					}
					return math.Log(sum) - dot64(row, wide[label])
				}
				near(t, "nll", values(nll)[i:], []float64{loss()}, tol)
				near(t, "nll alone", values(alone)[i:], []float64{loss()}, tol)
				for j := range h {
					near(t, "dh", values(dx)[i*h+j:], []float64{float64(kernels.Float(b.rec.Loss[i])) * slope(loss, row, j)}, tol)
				}
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

func TestAdamW(t *testing.T) {
	for _, d := range []kernels.DType{kernels.F32, kernels.BF16} {
		for _, corrected := range []bool{false, true} {
			r := newRig(t, Config{Threads: 2, Working: d})
			const rank, scaling = 8, 1.5
			sites := []kernels.SiteRows{{Rows: 700}, {Rows: 37}, {Rows: 600}}
			n := (700 + 37 + 600) * rank
			lanes, err := r.NewLaneTable(3)
			if err != nil {
				t.Fatal(err)
			}
			a := kernels.AdamWArgs{Lane: 2, Master: r.random(1, n, 1), M: r.alloc(kernels.F32, 1, n), V: r.alloc(kernels.F32, 1, n), Grad: r.alloc(kernels.F32, 1, n),
				Working: r.alloc(d, 1, n), Rank: rank, Sites: sites, Norms: r.garbage(1, 3), Hyper: r.alloc(kernels.F32, 1, kernels.HyperWords)}
			if corrected {
				a.Correction = r.random(3*rank, rank, 1)
			}
			r.SetLane(r.s, lanes, 2, a.Grad, rank, scaling)
			w, m1, v1 := f64(values(a.Master)), make([]float64, n), make([]float64, n)
			hyper := values(a.Hyper)
			copy(hyper, []float32{1e-2, 0.9, 0.99, 1e-6, 0.1, 20, 0, scaling})
			for step := 1; step <= 4; step++ {
				hyper[kernels.HyperStep] = float32(step)
				if step == 3 {
					hyper[kernels.HyperClip] = 0
				}
				copy(values(a.Grad), r.normal(n, 1))
				bad := step == 2
				if bad {
					values(a.Grad)[n-1] = float32(math.Inf(1))
				}
				g := f64(values(a.Grad))
				norm := math.Sqrt(dot64(g, g))
				r.GradNorm(r.s, a.Norms, lanes)
				if got := values(a.Norms); got[0] != 0 || got[1] != 0 || !bad && math.Abs(math.Sqrt(float64(got[2]))/norm-1) > 1e-5 {
					t.Fatalf("norms %v, want %v", got, norm*norm)
				}
				r.AdamW(r.s, a)
				for i, v := range values(a.Grad) {
					if v != 0 {
						t.Fatalf("gradient[%d] is %v after the step", i, v)
					}
				}
				if bad {
					near(t, "B after a bad step", values(a.Master), w, 1e-5)
					continue
				}
				if clip := float64(hyper[kernels.HyperClip]); clip > 0 {
					for i := range g {
						g[i] *= min(1, clip/norm)
					}
				}
				if corrected {
					row := 0
					for s, site := range sites {
						for ; site.Rows > 0; site.Rows-- {
							x := append([]float64(nil), g[row*rank:][:rank]...)
							for j := range rank {
								g[row*rank+j] = 0
								for i := range rank {
									g[row*rank+j] += x[i] * float64(values(a.Correction)[(s*rank+i)*rank+j])
								}
							}
							row++
						}
					}
				}
				size := 1e-2 * math.Sqrt(1-math.Pow(0.99, float64(step))) / (1 - math.Pow(0.9, float64(step)))
				want := make([]float64, n)
				for i := range w {
					m1[i] = 0.9*m1[i] + 0.1*g[i]
					v1[i] = 0.99*v1[i] + 0.01*g[i]*g[i]
					w[i] -= size * m1[i] / (math.Sqrt(v1[i]) + 1e-6)
					w[i] -= 1e-2 * 0.1 * w[i]
					want[i] = scaling * w[i]
				}
				near(t, "B", values(a.Master), w, tol)
				near(t, "working", r.widened(r.workingOf(a.Working, "test"), n), want, map[kernels.DType]float64{kernels.F32: tol, kernels.BF16: 4e-3}[d])
			}
		}
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
