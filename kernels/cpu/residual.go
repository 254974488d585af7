package cpu

import (
	"fmt"

	"bhive/kernels"
)

type residualTask struct {
	b                  *Backend
	out, normed, x, yz mat
	carry              mat // present only with fold: float32 is not rounded
	bias, norm, rstd   []float32
	eps                float32
	ref                kernels.BRef
	r                  *kernels.Record
	each               int
}

// ResidualNorm: out[t] = x[t] + y[t] + bias + B·z[t]; normed[t] = out[t]·rstd[t]·w.
func (b *Backend) ResidualNorm(s kernels.Stream, a kernels.ResidualNormArgs, step kernels.Step) {
	h, m := a.X.Cols, step.Bucket.Tokens
	if a.B.Table != nil && a.B.Out != h {
		panic(fmt.Sprintf("cpu: residual: B has %d rows, want %d", a.B.Out, h))
	}
	t := residualTask{b: b, out: matrix(a.Out, m, h, "residual: out"), normed: matrix(a.Normed, m, h, "residual: normed"),
		x: matrix(a.X, m, h, "residual: x"), yz: matrix(a.YZ, m, max(h, a.YZ.Cols), "residual: yz"),
		bias: optionalVector(a.Bias, h, "residual: bias"), norm: vector(a.Norm, h, "residual: norm"),
		rstd: optionalVector(a.Rstd, m, "residual: rstd"), eps: a.Eps, ref: a.B}
	if a.Fold {
		t.carry = optional(a.Carry, m, h, "residual: carry")
	}
	if g := recording(s); g != nil {
		t := t
		g.add(func() { b.runResidual(&t, step) })
		return
	}
	b.residual = t
	b.runResidual(&b.residual, step)
}

func (b *Backend) runResidual(a *residualTask, step kernels.Step) {
	b.residual = *a
	t := &b.residual
	t.r = b.record(step)
	t.each = b.share(tokens(t.r))
	b.pool.run(taskResidual, parts(tokens(t.r), t.each))
}

func (t *residualTask) part(_, i int) {
	t0 := i * t.each
	t1 := min(t0+t.each, tokens(t.r))
	h := t.x.cols
	y := t.yz.cut(0, h)
	if t.bias != nil {
		for at := t0; at < t1; at++ {
			t.b.k.Add(y.row(at), t.bias[:h])
		}
	}
	t.b.expand(y, t.yz.cut(h, t.yz.cols), t.ref, t.r, t0, t1, 0, h)
	for at := t0; at < t1; at++ {
		out := t.out.row(at)
		copy(out, t.x.row(at))
		t.b.k.Add(out, y.row(at))
		if t.carry.at != nil {
			t.b.k.Add(out, t.carry.row(at))
			clear(t.carry.row(at))
		}
		r := t.b.rms(out, t.eps)
		t.b.k.ScaleMul(t.normed.row(at), out, r, t.norm)
		if t.rstd != nil {
			t.rstd[at] = r
		}
	}
}
