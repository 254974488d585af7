//go:build cuda

package cuda

import (
	"fmt"
	"testing"

	"bhive/kernels"
)

// trainingHeads are shapes of attention in training: the tiny models', SmolLM2's, Llama's, and odd ones.
var trainingHeads = [][3]int{{4, 2, 16}, {4, 2, 32}, {6, 2, 10}, {9, 3, 64}, {4, 4, 64}, {8, 1, 128}, {32, 8, 128}}

func TestQKVBackward(t *testing.T) {
	ragged(t, func(p *pair, b *batch) {
		m, n := b.gpu.Bucket.Tokens, b.tokens()
		for _, shape := range trainingHeads {
			hq, kv, d := shape[0], shape[1], shape[2]
			out := (hq + 2*kv) * d
			for _, norms := range []int{0, 1, 2} { // none, q's alone, both
				dq, dk, dv := p.filled(m, hq*d, n, 1), p.filled(m, kv*d, n, 1), p.filled(m, kv*d, n, 1)
				pre, rope, wide := p.filled(m, (hq+kv)*d, n, 1), p.rope(800, d), p.garbage(m, out+16)
				ga := kernels.QKVBackwardArgs{DY: wide.gpu.ColRange(0, out), DQ: dq.gpu, DK: dk.gpu, DV: dv.gpu, Rope: rope.gpu, Eps: 1e-5, Heads: hq, KVHeads: kv}
				ca := kernels.QKVBackwardArgs{DY: wide.cpu.ColRange(0, out), DQ: dq.cpu, DK: dk.cpu, DV: dv.cpu, Rope: rope.cpu, Eps: 1e-5, Heads: hq, KVHeads: kv}
				if norms > 0 {
					w := p.f32(1, d, p.normal(d, 1))
					ga.QNorm, ca.QNorm, ga.Pre, ca.Pre = w.gpu, w.cpu, pre.gpu, pre.cpu
				}
				if norms > 1 {
					w := p.f32(1, d, p.normal(d, 1))
					ga.KNorm, ca.KNorm = w.gpu, w.cpu
				}
				run := func() { p.gpu.QKVBackward(p.gpu.s, ga, b.gpu) }
				run()
				p.cpu.QKVBackward(p.cpu.s, ca, b.cpu)
				p.again("qkv backward", run, wide)
				dy := p.garbage(m, out)
				p.gpu.Copy(p.gpu.s, dy.gpu, ga.DY)
				p.cpu.Copy(p.cpu.s, dy.cpu, ca.DY)
				p.same(fmt.Sprintf("dy of %v with %d norms", shape, norms), dy, n, p.tol())
			}
		}
	})
}

func BenchmarkQKVBackward(b *testing.B) {
	const n, hq, kv, d = 4096, 32, 8, 128
	const out = (hq + 2*kv) * d
	p := newPair(b, Config{Working: kernels.BF16})
	x := p.step(9, seq{n, 0, -1})
	m := x.gpu.Bucket.Tokens
	act := func(cols int) kernels.Tensor { return p.gpu.tensor(p.dt, m, cols, p.normal(m*cols, 1)) }
	a := kernels.QKVBackwardArgs{DY: act(out+64).ColRange(0, out), DQ: act(hq * d), DK: act(kv * d), DV: act(kv * d), Rope: p.rope(n, d).gpu, Eps: 1e-5, Heads: hq, KVHeads: kv}
	b.Run("plain", func(b *testing.B) { p.timed(b, 2*2*n*out, 0, func() { p.gpu.QKVBackward(p.gpu.s, a, x.gpu) }) })
	a.QNorm = p.gpu.tensor(kernels.F32, 1, d, p.normal(d, 1))
	a.KNorm, a.Pre = a.QNorm, act((hq+kv)*d)
	b.Run("norms", func(b *testing.B) { p.timed(b, 3*2*n*out, 0, func() { p.gpu.QKVBackward(p.gpu.s, a, x.gpu) }) })
}
