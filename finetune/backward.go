package finetune

import (
	"math"

	"bhive/adapters"
	"bhive/infer"
	"bhive/kernels"
)

// backward runs a model's backward pass over what a forward pass saved, with the gradients of activations in the trainer's memory.
type backward struct {
	m     *infer.Model
	lanes kernels.LaneTable
	mem   *infer.Training
}

// dx is the gradient of the residual stream, [T, H].
func (b *backward) dx() kernels.Tensor { return b.mem.DRes.ColRange(0, b.m.Config.Hidden) }

// head computes the losses, and where train is set the gradient of the residual after the last layer. That of the final norm's output takes
// its place.
func (b *backward) head(s kernels.Stream, nll kernels.Tensor, step kernels.Step, train bool) {
	be, hidden, save := b.m.Backend, b.mem.State.Normed, b.mem.Save
	if !train {
		be.CrossEntropy(s, nll, kernels.Tensor{}, hidden, b.mem.Logits, b.m.Head, step)
		return
	}
	be.CrossEntropy(s, nll, hidden, hidden, b.mem.Logits, b.m.Head, step)
	be.Zero(s, b.mem.DRes)
	be.NormBackward(s, b.dx(), hidden, save.SumOut, b.m.FinalNorm, save.RstdOut, step)
}

// layer adds layer l's gradients of B to the lanes and takes dx from the layer's output to its input. Below layer 0's attn_in
// nothing is trained, so there it stops. A change here or in the forward may change when a tensor is alive: infer.Training says that.
func (b *backward) layer(s kernels.Stream, sc infer.StepContext, l int) {
	be, m, c, step, mem := b.m.Backend, b.m, &b.m.Config, sc.Step, b.mem
	w, v := &m.Layers[l], &mem.Save.Layers[l]
	dres, dn, dact := mem.DRes, mem.State.Normed, mem.State.Act
	expand := func(site adapters.Site, dyz, z kernels.Tensor) {
		be.ExpandBackward(s, kernels.ExpandBackwardArgs{DYZ: dyz, Z: z, B: m.B(sc.Table, l, site), Grad: m.Grad(b.lanes, l, site)}, step)
	}
	expand(adapters.MLPDown, dres, v.ZMLPDown)
	be.LinearBackward(s, dact, dres, w.MLPDown, false, step)

	dyz, out := v.GateUp, w.MLPIn.Out() // in the place of what they are of
	dgu := dyz.ColRange(0, out)
	be.MLPBackward(s, dgu, dact, dgu, step)
	expand(adapters.MLPIn, dyz, dyz.ColRange(out, out+w.MLPIn.R()))
	be.LinearBackward(s, dn, dyz, w.MLPIn, false, step)
	be.NormBackward(s, b.dx(), dn, v.SumMid, w.MLPNorm, v.RstdMid, step)

	expand(adapters.AttnOut, dres, v.ZAttnOut)
	be.LinearBackward(s, mem.DO, dres, w.AttnOut, false, step)
	be.AttentionBackward(s, kernels.AttentionBackwardArgs{DQ: mem.DQ, DK: mem.DK, DV: mem.DV, DO: mem.DO, O: v.O, Q: v.Q, LSE: v.LSE,
		Cache: sc.Cache, Layer: sc.CacheLayer(l), Scale: float32(1 / math.Sqrt(float64(c.HeadDim))), Window: c.Window(l)}, step)

	dyz = mem.State.YZ[adapters.AttnIn]
	be.QKVBackward(s, kernels.QKVBackwardArgs{DY: dyz.ColRange(0, w.AttnIn.Out()), DQ: mem.DQ, DK: mem.DK, DV: mem.DV, Rope: m.Rope,
		QNorm: w.QNorm, KNorm: w.KNorm, Eps: float32(c.NormEps), Pre: v.Pre, Heads: c.Heads, KVHeads: c.KVHeads}, step)
	expand(adapters.AttnIn, dyz, v.ZAttnIn)
	if l == 0 {
		return
	}
	be.LinearBackward(s, dn, dyz, w.AttnIn, false, step)
	be.NormBackward(s, b.dx(), dn, v.SumIn, w.AttnNorm, v.RstdIn, step)
}
