package cpu

import (
	"math"
	"testing"

	"bhive/kernels"
)

// fillCache writes random K and V everywhere.
func (r *rig) fillCache(c *kvCache) {
	n := c.spec.Blocks * c.spec.BlockTokens * c.width
	for l := range c.k {
		c.k[l].put(r.k, 0, r.normal(n, 1))
		c.v[l].put(r.k, 0, r.normal(n, 1))
	}
}

// attend64 is one token's head: output and log-sum-exp.
func (r *rig) attend64(b *batch, c *kvCache, layer, i, kvHead int, q []float64, scale float64, window int) ([]float64, float64) {
	hi := int(b.rec.Position[i]) + 1
	lo := 0
	if window > 0 {
		lo = max(0, hi-window)
	}
	o := make([]float64, len(q))
	sum := 0.0
	for p := lo; p < hi; p++ {
		slot := int(b.rec.BlockTable[int(b.rec.Seq[i])*b.step.Bucket.Blocks+p/blockTokens])*blockTokens + p%blockTokens
		at := slot*c.width + kvHead*testD
		e := math.Exp(scale * dot64(q, f64(r.widened(c.k[layer].at(at), testD))))
		sum += e
		for j, v := range r.widened(c.v[layer].at(at), testD) {
			o[j] += e * float64(v)
		}
	}
	for j := range o {
		o[j] /= sum
	}
	return o, math.Log(sum)
}

func TestAttention(t *testing.T) {
	mixes(t, func(r *rig, seqs []seq) {
		for _, window := range []int{0, 5} {
			b := r.step(9, seqs...)
			m := b.step.Bucket.Tokens
			c := r.cache(b, 2)
			r.fillCache(c)
			a := kernels.AttentionArgs{Out: r.garbage(m, testHq*testD), Q: r.random(m, testHq*testD, 1), Cache: c, Layer: 1, Scale: 0.4,
				Window: window, LSE: r.garbage(m, testHq)}
			r.Attention(r.s, a, b.step)
			for i := range b.tokens() {
				for h := range testHq {
					at := (i*testHq + h) * testD
					want, lse := r.attend64(b, c, 1, i, h/(testHq/testHkv), f64(values(a.Q)[at:][:testD]), float64(a.Scale), window)
					near(r, "o", values(a.Out)[at:], want, tol)
					near(r, "lse", values(a.LSE)[i*testHq+h:], []float64{lse}, tol)
				}
			}
		}
	})
}
