//go:build cuda

package cuda

import "bhive/kernels"

// MLPBackward: dg = da·u·σ(g)(1 + g(1−σ(g))), du = da·silu(g).
func (b *Backend) MLPBackward(s kernels.Stream, dgu, da, gateUp kernels.Tensor, step kernels.Step) {
	at, stride := matrix(dgu, b.config.Working, step.Bucket.Tokens, 2*da.Cols, "mlp backward: dgu")
	b.siluMul(s, "mlp_backward", at, stride, da, gateUp, step)
}

// MLPForward: act = silu(g)·u.
func (b *Backend) MLPForward(s kernels.Stream, act, gateUp kernels.Tensor, step kernels.Step) {
	b.siluMul(s, "mlp_forward", 0, 0, act, gateUp, step)
}

func (b *Backend) siluMul(s kernels.Stream, name string, dgu, ds uint64, a, gateUp kernels.Tensor, step kernels.Step) {
	m, ff, dt := step.Bucket.Tokens, a.Cols, b.config.Working
	aa, as := matrix(a, dt, m, ff, name+": activation")
	ga, gs := matrix(gateUp, dt, m, 2*ff, name+": gate and up")
	width := 256
	if dt == kernels.BF16 && (uint64(ff)|ds|as|gs)%8 == 0 && (dgu|aa|ga)%16 == 0 {
		name, width = name+"8", 8*256
	}
	b.launch(s, name+b.suffix(), m, parts(ff, width), 1, 256, 0, dgu, ds, aa, as, ga, gs, uint64(ff), recordOf(step).at(atHead))
}
