package finetune

import (
	"fmt"
	"math"

	"bhive/adapters"
	"bhive/infer"
	"bhive/kernels"
)

// backward runs a model's backward pass over what a forward pass saved. It owns the gradients of activations, of steps of at
// most tokens tokens.
type backward struct {
	m      *infer.Model
	lanes  kernels.LaneTable
	tokens int

	dres   kernels.Tensor // [T, H+R]: gradient of the residual stream, which is also that of attn_out's and mlp_down's output, beside it of their z
	dn     kernels.Tensor // [T, H]: of a norm's output
	dyz    kernels.Tensor // [1, T·(widest out+R)]: of the other linears' output, beside it of z
	din    kernels.Tensor // [1, T·max(F, Hq·D)]: of the input of mlp_down, of attn_out
	dq     kernels.Tensor // [T, Hq·D]
	dk, dv kernels.Tensor // [T, Hkv·D]

	owned []kernels.Tensor
}

// newBackward takes dyz and dq out of st, whose YZ and Q nothing reads between a layer's forward and the end of its backward, and din
// too where Act is as wide as o.
func newBackward(m *infer.Model, lanes kernels.LaneTable, st *infer.State) (*backward, error) {
	b := &backward{m: m, lanes: lanes, tokens: st.Tokens, dyz: st.YZ, dq: st.Q, din: st.Act}
	for _, g := range gradients(m, st.Tokens) {
		t, err := m.Backend.Alloc(m.Backend.Info().Activation, g.rows, g.cols)
		if err != nil {
			b.close()
			return nil, fmt.Errorf("allocating gradients of %d tokens: %w", st.Tokens, err)
		}
		*g.of(b) = t
		b.owned = append(b.owned, t)
	}
	return b, nil
}

// gradient is one that a backward allocates.
type gradient struct {
	of         func(*backward) *kernels.Tensor
	rows, cols int
}

func gradients(m *infer.Model, tokens int) []gradient {
	c := m.Config
	q, kv := c.Heads*c.HeadDim, c.KVHeads*c.HeadDim
	out := []gradient{{func(b *backward) *kernels.Tensor { return &b.dres }, tokens, c.Hidden + m.R()}, {func(b *backward) *kernels.Tensor { return &b.dn }, tokens, c.Hidden},
		{func(b *backward) *kernels.Tensor { return &b.dk }, tokens, kv}, {func(b *backward) *kernels.Tensor { return &b.dv }, tokens, kv}}
	if q > c.FeedForward {
		out = append(out, gradient{func(b *backward) *kernels.Tensor { return &b.din }, tokens, q})
	}
	return out
}

func (b *backward) close() {
	for _, t := range b.owned {
		b.m.Backend.Free(t)
	}
	b.owned = nil
}

// dx is the gradient of the residual stream, [T, H].
func (b *backward) dx() kernels.Tensor { return b.dres.ColRange(0, b.m.Config.Hidden) }

// view is the matrix [T, cols] at the start of a flat buffer.
func (b *backward) view(flat kernels.Tensor, cols int) kernels.Tensor {
	flat.Rows, flat.Cols, flat.Stride = b.tokens, cols, cols
	return flat
}

// head computes the losses of tokens [from, to), and where train is set the gradient of the final norm's output, which is in hidden.
func (b *backward) head(s kernels.Stream, nll, hidden kernels.Tensor, from, to int, step kernels.Step, train bool) {
	be := b.m.Backend
	if !train {
		be.CrossEntropy(s, nll, kernels.Tensor{}, hidden, b.m.Head, from, to, step)
		return
	}
	be.CrossEntropy(s, nll, b.dn, hidden, b.m.Head, from, to, step)
}

// start takes the gradient of the final norm's output, which head has left, to the residual after the last layer.
func (b *backward) start(s kernels.Stream, save *infer.Save, step kernels.Step) {
	b.m.Backend.Zero(s, b.dres)
	b.m.Backend.NormBackward(s, b.dx(), b.dn, save.SumOut, b.m.FinalNorm, save.RstdOut, step)
}

// layer runs one part of layer l's backward. From the last part to the first they add its gradients of B to the lanes and take dx from the layer's
// output to its input. Below layer 0's attn_in nothing is trained, so there it stops.
func (b *backward) layer(s kernels.Stream, sc infer.StepContext, l int, part infer.Part, save *infer.Save) {
	be, m, c, step := b.m.Backend, b.m, &b.m.Config, sc.Step
	w, v := &m.Layers[l], &save.Layers[l]
	out := func(w kernels.Weight) kernels.Tensor { return b.view(b.dyz, w.Out()+w.R()) }
	expand := func(site adapters.Site, dyz, z kernels.Tensor) {
		be.ExpandBackward(s, kernels.ExpandBackwardArgs{DYZ: dyz, Z: z, B: m.B(sc.Table, l, site), Grad: m.Grad(b.lanes, l, site)}, step)
	}
	switch part {
	case infer.PartDown:
		expand(adapters.MLPDown, b.dres, v.ZMLPDown)
		dact := b.view(b.din, c.FeedForward)
		be.LinearBackward(s, dact, b.dres, w.MLPDown, false, step)
		be.MLPBackward(s, out(w.MLPIn).ColRange(0, w.MLPIn.Out()), dact, v.GateUp, step)
		return
	case infer.PartGateUp:
		dyz := out(w.MLPIn)
		expand(adapters.MLPIn, dyz, v.ZMLPIn)
		be.LinearBackward(s, b.dn, dyz, w.MLPIn, false, step)
		be.NormBackward(s, b.dx(), b.dn, v.SumMid, w.MLPNorm, v.RstdMid, step)
		return
	}
	expand(adapters.AttnOut, b.dres, v.ZAttnOut)
	do := b.view(b.din, c.Heads*c.HeadDim)
	be.LinearBackward(s, do, b.dres, w.AttnOut, false, step)
	be.AttentionBackward(s, kernels.AttentionBackwardArgs{DQ: b.dq, DK: b.dk, DV: b.dv, DO: do, O: v.O, Q: v.Q, LSE: v.LSE,
		Cache: sc.Cache, Layer: l, Scale: float32(1 / math.Sqrt(float64(c.HeadDim))), Window: c.Window(l)}, step)

	dyz := out(w.AttnIn)
	be.QKVBackward(s, kernels.QKVBackwardArgs{DY: dyz.ColRange(0, w.AttnIn.Out()), DQ: b.dq, DK: b.dk, DV: b.dv, Rope: m.Rope,
		QNorm: w.QNorm, KNorm: w.KNorm, Eps: float32(c.NormEps), Pre: v.Pre, Heads: c.Heads, KVHeads: c.KVHeads}, step)
	expand(adapters.AttnIn, dyz, v.ZAttnIn)
	if l == 0 {
		return
	}
	be.LinearBackward(s, b.dn, dyz, w.AttnIn, false, step)
	be.NormBackward(s, b.dx(), b.dn, v.SumIn, w.AttnNorm, v.RstdIn, step)
}
