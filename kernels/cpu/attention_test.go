package cpu

import (
	"math"
	"slices"
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

// TestAttentionShares: what workers share of the last parts has the same bits as on one thread.
func TestAttentionShares(t *testing.T) {
	const heads, kv, size = 6, 3, 40
	const width = heads * size
	for _, d := range []kernels.DType{kernels.F32, kernels.BF16} {
		for _, window := range []int{0, 300} {
			for name, seqs := range map[string][]seq{
				"one token":  {{n: 1, context: 700, adapter: -1, lane: -1}},
				"odd":        {{n: 1, context: 259, adapter: -1, lane: -1}},
				"below":      {{n: 1, context: 100, adapter: -1, lane: -1}},
				"three":      {{n: 1, context: 500, adapter: -1, lane: -1}, {n: 1, context: 300, adapter: -1, lane: -1}, {n: 1, context: 411, adapter: -1, lane: -1}},
				"with chunk": {{n: 1, context: 500, adapter: -1, lane: -1}, {n: 21, context: 400, adapter: -1, lane: -1}},
			} {
				var want []float32
				var lse []float32
				shared := false
				for _, threads := range []int{1, 2, 4, 5, 7} {
					r := newRig(t, Config{Threads: threads, Working: d})
					b := r.step(9, seqs...)
					m := b.step.Bucket.Tokens
					k, err := r.NewKVCache(kernels.KVSpec{Layers: 2, Blocks: 800, BlockTokens: blockTokens, KVHeads: kv, HeadDim: size})
					if err != nil {
						t.Fatal(err)
					}
					c := k.(*kvCache)
					r.fillCache(c)
					a := kernels.AttentionArgs{Out: r.garbage(m, width), Q: r.random(m, width, 1), Cache: c, Layer: 1, Scale: 0.4, Window: window, LSE: r.garbage(m, heads)}
					r.Attention(r.s, a, b.step)
					n := b.tokens()
					o, l := values(a.Out)[:n*width], values(a.LSE)[:n*heads]
					if want == nil {
						want, lse = o, l
					}
					shared = shared || r.attention.shares > 0
					if !slices.Equal(o, want) || !slices.Equal(l, lse) {
						t.Errorf("%s, %s, window %d: %d threads give other bits than one", d, name, window, threads)
					}
				}
				if shared != (name != "below") {
					t.Errorf("%s, %s: shared: %v", d, name, shared)
				}
			}
		}
	}
}
