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

// TestAttentionBesideNoNumbers: values that are no numbers reach the tokens that see them and no others, not even those that go over the keys together with them.
func TestAttentionBesideNoNumbers(t *testing.T) {
	const heads, kv, size, infinite, none = 6, 3, 40, 9, 13
	const width = heads * size
	for _, d := range []kernels.DType{kernels.F32, kernels.BF16} {
		for _, window := range []int{0, 3} {
			for _, threads := range []int{1, 4} {
				for _, context := range []int{0, 300} {
					r := newRig(t, Config{Threads: threads, Working: d})
					b := r.step(9, seq{n: 20, context: context, adapter: -1, lane: -1})
					m := b.step.Bucket.Tokens
					k, err := r.NewKVCache(kernels.KVSpec{Layers: 1, Blocks: 100, BlockTokens: blockTokens, KVHeads: kv, HeadDim: size})
					if err != nil {
						t.Fatal(err)
					}
					c := k.(*kvCache)
					r.fillCache(c)
					a := kernels.AttentionArgs{Out: r.garbage(m, width), Q: r.random(m, width, 1), Cache: c, Scale: 0.4, Window: window}
					r.Attention(r.s, a, b.step)
					want := slices.Clone(values(a.Out))
					for j := range kv * size {
						c.v[0].put(r.k, int(b.rec.KVSlot[infinite])*c.width+j, []float32{float32(math.Inf(1 - j%2*2))})
						c.v[0].put(r.k, int(b.rec.KVSlot[none])*c.width+j, []float32{float32(math.NaN())})
					}
					r.Attention(r.s, a, b.step)
					sees := func(i, p int) bool { return p <= i && (window == 0 || i < p+window) }
					for i := range 20 {
						for j, x := range values(a.Out)[i*width:][:width] {
							if lost := sees(i, infinite) || sees(i, none); !lost && x != want[i*width+j] || lost && x-x == 0 {
								t.Fatalf("%s, window %d, %d threads, context %d: token %d has %v in column %d, %v without them", d, window, threads, context, i, x, j, want[i*width+j])
							}
						}
					}
				}
			}
		}
	}
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
