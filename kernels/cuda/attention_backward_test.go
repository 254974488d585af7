//go:build cuda

package cuda

import (
	"fmt"
	"math"
	"testing"

	"bhive/kernels"
)

func TestAttentionBackward(t *testing.T) {
	raggedOf(t, func(p *pair, b *batch) {
		for _, shape := range trainingHeads {
			if b.tokens() > 200 && shape[0] > 16 {
				continue // the oracle's time
			}
			for _, window := range short([]int{0, 5, 100}, []int{0, 5}) {
				p.backward(b, shape, window)
			}
		}
	}, Config{Working: kernels.F32}, Config{Working: kernels.BF16}, Config{Working: kernels.BF16, NoWarpgroups: true})
}

func (p *pair) backward(b *batch, shape [3]int, window int) {
	p.Helper()
	m, n := b.gpu.Bucket.Tokens, b.tokens()
	hq, kv, d := shape[0], shape[1], shape[2]
	name := fmt.Sprintf("%v, window %d: ", shape, window)
	g, c := p.stale(b, kv, d)
	defer p.gpu.FreeKVCache(g)
	defer p.cpu.FreeKVCache(c)
	q, do := p.filled(m, hq*d, n, 1), p.filled(m, hq*d, n, 1)
	p.keys(b, g, c, hq, kv, d)
	scale := float32(1 / math.Sqrt(float64(d)))
	// Both sides go back from the oracle's o and lse.
	o, lse := p.garbage(m, hq*d), p.f32(m, hq, nans(m*hq))
	p.cpu.Attention(p.cpu.s, kernels.AttentionArgs{Out: o.cpu, Q: q.cpu, Cache: c, Layer: 1, Scale: scale, Window: window, LSE: lse.cpu}, b.cpu)
	rounded := p.cpu.values(o.cpu)
	for i, x := range rounded {
		rounded[i] = round(x, p.dt)
	}
	o, lse = p.act(m, hq*d, rounded), p.f32(m, hq, p.cpu.values(lse.cpu))
	dq, dk, dv := p.garbage(m, hq*d), p.garbage(m, kv*d), p.garbage(m, kv*d)
	run := func() {
		p.gpu.AttentionBackward(p.gpu.s, kernels.AttentionBackwardArgs{DQ: dq.gpu, DK: dk.gpu, DV: dv.gpu, DO: do.gpu, O: o.gpu, Q: q.gpu, LSE: lse.gpu,
			Cache: g, Layer: 1, Scale: scale, Window: window}, b.gpu)
	}
	run()
	p.cpu.AttentionBackward(p.cpu.s, kernels.AttentionBackwardArgs{DQ: dq.cpu, DK: dk.cpu, DV: dv.cpu, DO: do.cpu, O: o.cpu, Q: q.cpu, LSE: lse.cpu,
		Cache: c, Layer: 1, Scale: scale, Window: window}, b.cpu)
	tol, whole := p.tol(), p.tol()
	if p.dt == kernels.BF16 { // a key's sums have hundreds of rounded terms of about 1
		tol, whole = 3e-2, 6e-3
	}
	p.near(name+"dv", dv, n, tol, whole)
	if n == 1 { // one key has probability 1 whatever q and k are: what is left of dq and dk is noise
		whole = math.Inf(1)
	}
	p.near(name+"dq", dq, n, tol, whole)
	p.near(name+"dk", dk, n, tol, whole)
	p.again(name, run, dq, dk, dv)
}

// keys writes K and V of a step's tokens into layer 1 of both caches.
func (p *pair) keys(b *batch, g, c kernels.KVCache, hq, kv, d int) {
	m, out := b.gpu.Bucket.Tokens, (hq+2*kv)*d
	yz, q, rope := p.filled(m, out, b.tokens(), 1), p.garbage(m, hq*d), p.rope(b.gpu.Bucket.Blocks*p.block, d)
	p.gpu.QKV(p.gpu.s, kernels.QKVArgs{Q: q.gpu, YZ: yz.gpu, Eps: 1e-5, Rope: rope.gpu, Cache: g, Layer: 1}, b.gpu)
	p.cpu.QKV(p.cpu.s, kernels.QKVArgs{Q: q.cpu, YZ: yz.cpu, Eps: 1e-5, Rope: rope.cpu, Cache: c, Layer: 1}, b.cpu)
}

// BenchmarkAttentionBackward counts the 5 products that a backward needs, causal; the two kernels compute 7.
func BenchmarkAttentionBackward(b *testing.B) {
	for _, s := range []struct{ n, each, hq, kv, d int }{{4, 1024, 32, 8, 128}, {4, 2048, 32, 8, 128}, {8, 512, 32, 8, 128}, {1, 4096, 32, 8, 128}, {5, 200, 9, 3, 64}, {4, 1024, 32, 8, 64}} {
		var seqs []seq
		for range s.n {
			seqs = append(seqs, seq{s.each, 0, -1})
		}
		for _, warps := range []bool{false, true} {
			b.Run(fmt.Sprintf("%dx%d/%d-%d-%d/warps=%v", s.n, s.each, s.hq, s.kv, s.d, warps), func(b *testing.B) {
				p := newPair(b, Config{Working: kernels.BF16, NoWarpgroups: warps})
				x := p.step(9, seqs...)
				g, c := p.cache(x, s.kv, s.d)
				p.keys(x, g, c, s.hq, s.kv, s.d)
				m := x.gpu.Bucket.Tokens
				act := func(heads int) kernels.Tensor { return p.gpu.tensor(p.dt, m, heads*s.d, p.normal(m*heads*s.d, 1)) }
				scale := float32(1 / math.Sqrt(float64(s.d)))
				q, o, do, lse, dq, dk, dv := act(s.hq), act(s.hq), act(s.hq), p.gpu.tensor(kernels.F32, m, s.hq, make([]float32, m*s.hq)), act(s.hq), act(s.kv), act(s.kv)
				flops := 2 * float64(s.n) * float64(s.each) * float64(s.each+1) / 2 * float64(s.hq*s.d)
				forward := func() {
					p.gpu.Attention(p.gpu.s, kernels.AttentionArgs{Out: o, Q: q, Cache: g, Layer: 1, Scale: scale, LSE: lse}, x.gpu)
				}
				b.Run("forward", func(b *testing.B) { p.timed(b, 0, 2*flops, forward) })
				b.Run("backward", func(b *testing.B) {
					forward()
					p.timed(b, 0, 5*flops, func() {
						p.gpu.AttentionBackward(p.gpu.s, kernels.AttentionBackwardArgs{DQ: dq, DK: dk, DV: dv, DO: do, O: o, Q: q, LSE: lse, Cache: g, Layer: 1, Scale: scale}, x.gpu)
					})
				})
			})
		}
	}
}
