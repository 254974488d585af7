//go:build cuda

package cuda

import (
	"testing"

	"bhive/kernels"
)

func TestMLPBackward(t *testing.T) {
	ragged(t, func(p *pair, b *batch) {
		m, n := b.gpu.Bucket.Tokens, b.tokens()
		for _, f := range []int{72, 75, 1536, 4100} {
			gu, da, act := p.filled(m, 2*f, n, 2), p.filled(m, f, n, 1), p.garbage(m, f)
			p.gpu.MLPForward(p.gpu.s, act.gpu, gu.gpu, b.gpu)
			p.cpu.MLPForward(p.cpu.s, act.cpu, gu.cpu, b.cpu)
			p.same("act", act, n, p.tol())
			// Beside a z, as a linear's gradient has it; and in the place of g and u.
			wide := p.garbage(m, 2*f+16)
			dgu := both{wide.gpu.ColRange(0, 2*f), wide.cpu.ColRange(0, 2*f)}
			run := func() { p.gpu.MLPBackward(p.gpu.s, dgu.gpu, da.gpu, gu.gpu, b.gpu) }
			run()
			p.cpu.MLPBackward(p.cpu.s, dgu.cpu, da.cpu, gu.cpu, b.cpu)
			p.again("mlp backward", run, wide)
			out := p.garbage(m, 2*f)
			p.gpu.Copy(p.gpu.s, out.gpu, dgu.gpu)
			p.cpu.Copy(p.cpu.s, out.cpu, dgu.cpu)
			p.same("dgu", out, n, p.tol())
			p.gpu.MLPBackward(p.gpu.s, gu.gpu, da.gpu, gu.gpu, b.gpu)
			p.cpu.MLPBackward(p.cpu.s, gu.cpu, da.cpu, gu.cpu, b.cpu)
			p.same("dgu in place", gu, n, p.tol())
		}
	})
}

func BenchmarkMLPBackward(b *testing.B) {
	const n, f = 4096, 14336
	p := newPair(b, Config{Working: kernels.BF16})
	x := p.step(9, seq{n, 0, -1})
	m := x.gpu.Bucket.Tokens
	noise := p.normal(m*2*f, 1)
	gu, da, dgu := p.gpu.tensor(p.dt, m, 2*f, noise), p.gpu.tensor(p.dt, m, f, noise[:m*f]), p.gpu.tensor(p.dt, m, 2*f+64, make([]float32, m*(2*f+64)))
	b.Run("backward", func(b *testing.B) {
		p.timed(b, 5*2*n*f, 0, func() { p.gpu.MLPBackward(p.gpu.s, dgu.ColRange(0, 2*f), da, gu, x.gpu) })
	})
	b.Run("forward", func(b *testing.B) { p.timed(b, 3*2*n*f, 0, func() { p.gpu.MLPForward(p.gpu.s, da, gu, x.gpu) }) })
}
