package cpu

import (
	"math"
	"testing"

	"bhive/kernels"
)

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
