package cpu

import (
	"math"

	"bhive/kernels"
)

type normTask struct {
	b    *Backend
	y, x mat
	w    []float32
	rstd []float32
	eps  float32
	m    int
	each int
}

// RMSNorm: y[t] = x[t]·rstd[t]·w.
func (b *Backend) RMSNorm(s kernels.Stream, y, x, w, rstd kernels.Tensor, eps float32, step kernels.Step) {
	t := step.Bucket.Tokens
	n := normTask{b: b, y: matrix(y, t, x.Cols, "norm: y"), x: matrix(x, t, x.Cols, "norm: x"), w: vector(w, x.Cols, "norm: w"),
		rstd: optionalVector(rstd, t, "norm: rstd"), eps: eps}
	if g := recording(s); g != nil {
		n := n
		g.add(func() { b.runNorm(&n, step) })
		return
	}
	b.norm = n
	b.runNorm(&b.norm, step)
}

func (b *Backend) runNorm(n *normTask, step kernels.Step) {
	b.norm = *n
	b.norm.m = tokens(b.record(step))
	b.norm.each = b.share(b.norm.m)
	b.pool.run(taskNorm, parts(b.norm.m, b.norm.each))
}

func (t *normTask) part(_, i int) {
	for at := i * t.each; at < min((i+1)*t.each, t.m); at++ {
		x := t.x.row(at)
		r := t.b.rms(x, t.eps)
		t.b.k.ScaleMul(t.y.row(at), x, r, t.w)
		if t.rstd != nil {
			t.rstd[at] = r
		}
	}
}

// rms is 1/√(mean(x²) + eps).
func (b *Backend) rms(x []float32, eps float32) float32 {
	return float32(1 / math.Sqrt(float64(b.k.SumSquares(x)/float32(len(x))+eps)))
}

// share is how many of m tokens a part takes: one where there are few, at most 16.
func (b *Backend) share(m int) int {
	return max(1, min(16, m/(4*b.pool.workers)))
}

func parts(n, each int) int { return (n + each - 1) / each }
