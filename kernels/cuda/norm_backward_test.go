//go:build cuda

package cuda

import (
	"fmt"
	"math"
	"slices"
	"testing"

	"bhive/kernels"
)

// filled is an activation of n rows of noise; what lies past them is NaN, and neither read nor written.
func (p *pair) filled(rows, cols, n int, scale float64) both {
	return p.act(rows, cols, append(p.normal(n*cols, scale), nans((rows-n)*cols)...))
}

// again runs f a second time over a first result and wants the same bits.
func (p *pair) again(name string, f func(), results ...both) {
	p.Helper()
	var first [][]float32
	for _, t := range results {
		first = append(first, p.gpu.values(t.gpu))
	}
	f()
	for i, t := range results {
		if !sameBits(first[i], p.gpu.values(t.gpu)) {
			p.Fatalf("%s: result %d differs in a second run", name, i)
		}
	}
}

func sameBits(a, b []float32) bool {
	return slices.EqualFunc(a, b, func(x, y float32) bool { return math.Float32bits(x) == math.Float32bits(y) })
}

// ragged runs f for both dtypes and ragged steps without adapters or contexts.
func ragged(t *testing.T, f func(p *pair, b *batch)) {
	raggedOf(t, f, Config{Working: kernels.F32}, Config{Working: kernels.BF16})
}

func raggedOf(t *testing.T, f func(p *pair, b *batch), configs ...Config) {
	for _, c := range configs {
		for _, n := range sizes() {
			t.Run(fmt.Sprintf("%s/warps=%v/%d", c.Working, c.NoWarpgroups, n), func(t *testing.T) {
				var seqs []seq
				for _, l := range lengths[n] {
					seqs = append(seqs, seq{l, 0, -1})
				}
				p := newPair(t, c)
				f(p, p.step(9, seqs...))
			})
		}
	}
}

func TestNormBackward(t *testing.T) {
	ragged(t, func(p *pair, b *batch) {
		m, n := b.gpu.Bucket.Tokens, b.tokens()
		for _, h := range []int{64, 72, 75, 576, 4096} {
			noise := p.normal(n*h, 1)
			start := func() both { return p.act(m, h, append(slices.Clone(noise), nans((m-n)*h)...)) }
			dx, dy, x, w := start(), p.filled(m, h, n, 1), p.filled(m, h, n, 1), p.f32(1, h, p.normal(h, 1))
			r := p.normal(m, 0.3)
			for i := range r {
				r[i] = 0.5 + r[i]*r[i]
			}
			rstd := p.f32(1, m, r)
			p.gpu.NormBackward(p.gpu.s, dx.gpu, dy.gpu, x.gpu, w.gpu, rstd.gpu, b.gpu)
			p.cpu.NormBackward(p.cpu.s, dx.cpu, dy.cpu, x.cpu, w.cpu, rstd.cpu, b.cpu)
			p.same(fmt.Sprintf("norm backward of %d", h), dx, n, p.tol())
			first := p.gpu.values(dx.gpu)
			second := start().gpu
			p.gpu.NormBackward(p.gpu.s, second, dy.gpu, x.gpu, w.gpu, rstd.gpu, b.gpu)
			if !sameBits(first, p.gpu.values(second)) {
				p.Fatalf("norm backward of %d differs in a second run", h)
			}
		}
	})
}

// timed reports what an op of the benchmark's iterations moves and computes a second.
func (p *pair) timed(b *testing.B, bytes, flops float64, op func()) {
	for range 3 {
		op()
	}
	p.gpu.sync()
	b.ResetTimer()
	for range b.N {
		op()
	}
	p.gpu.sync()
	each := b.Elapsed().Seconds() / float64(b.N)
	b.ReportMetric(each*1e6, "µs/op")
	if bytes > 0 {
		b.ReportMetric(bytes/each/1e9, "GB/s")
	}
	if flops > 0 {
		b.ReportMetric(flops/each/1e12, "TFLOP/s")
	}
}

func BenchmarkNormBackward(b *testing.B) {
	for _, s := range [][2]int{{4096, 4096}, {1000, 576}} {
		b.Run(fmt.Sprintf("%dx%d", s[0], s[1]), func(b *testing.B) {
			p := newPair(b, Config{Working: kernels.BF16})
			x := p.step(9, seq{s[0], 0, -1})
			m, h := x.gpu.Bucket.Tokens, s[1]
			act := func() kernels.Tensor { return p.gpu.tensor(p.dt, m, h, p.normal(m*h, 1)) }
			dx, dy, in, w, rstd := act(), act(), act(), p.gpu.tensor(kernels.F32, 1, h, p.normal(h, 1e-3)), p.gpu.tensor(kernels.F32, 1, m, make([]float32, m))
			p.timed(b, 4*2*float64(s[0]*h), 0, func() { p.gpu.NormBackward(p.gpu.s, dx, dy, in, w, rstd, x.gpu) })
		})
	}
}
