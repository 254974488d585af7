package cpu

import "bhive/kernels"

type mlpBackwardTask struct {
	b               *Backend
	dgu, da, gateUp mat // without dgu, the forward: da = act
	m, each         int
}

// MLPBackward: dg = da·u·σ(g)(1 + g(1−σ(g))), du = da·silu(g).
func (b *Backend) MLPBackward(s kernels.Stream, dgu, da, gateUp kernels.Tensor, step kernels.Step) {
	m, f := step.Bucket.Tokens, da.Cols
	b.enqueueMLPBackward(s, mlpBackwardTask{b: b, dgu: matrix(dgu, m, 2*f, "mlp backward: dgu"), da: matrix(da, m, f, "mlp backward: da"),
		gateUp: matrix(gateUp, m, 2*f, "mlp backward: gate and up")}, step)
}

// MLPForward: act = silu(g)·u.
func (b *Backend) MLPForward(s kernels.Stream, act, gateUp kernels.Tensor, step kernels.Step) {
	m, f := step.Bucket.Tokens, act.Cols
	b.enqueueMLPBackward(s, mlpBackwardTask{b: b, da: matrix(act, m, f, "mlp forward: act"),
		gateUp: matrix(gateUp, m, 2*f, "mlp forward: gate and up")}, step)
}

func (b *Backend) enqueueMLPBackward(s kernels.Stream, t mlpBackwardTask, step kernels.Step) {
	if g := recording(s); g != nil {
		t := t
		g.add(func() { b.runMLPBackward(&t, step) })
		return
	}
	b.runMLPBackward(&t, step)
}

func (b *Backend) runMLPBackward(a *mlpBackwardTask, step kernels.Step) {
	b.mlpBackward = *a
	t := &b.mlpBackward
	t.m = tokens(b.record(step))
	t.each = b.share(t.m)
	b.pool.run(taskMLPBackward, parts(t.m, t.each))
}

func (t *mlpBackwardTask) part(_, i int) {
	f := t.da.cols
	for at := i * t.each; at < min((i+1)*t.each, t.m); at++ {
		gu := t.gateUp.row(at)
		if t.dgu.at == nil {
			t.b.k.SiluMul(t.da.row(at), gu[:f], gu[f:])
			continue
		}
		d := t.dgu.row(at)
		t.b.k.SiluMulBackward(d[:f], d[f:], t.da.row(at), gu[:f], gu[f:])
	}
}
