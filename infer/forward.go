package infer

import (
	"math"

	"bhive/adapters"
	"bhive/kernels"
)

// StepContext is what the ops of one step read besides weights and activations.
type StepContext struct {
	Step     kernels.Step
	Cache    kernels.KVCache
	Table    kernels.AdapterTable
	Previous kernels.Sampled // of the step before, for tokens with Feed ≥ 0; may be zero where there are none
}

// EmbedTokens writes the step's embeddings to the residual stream and their norm, the input of layer 0, to st.Normed.
// save is optional, here and below.
func (m *Model) EmbedTokens(s kernels.Stream, st *State, sc StepContext, save *Save) {
	x, rstd := st.X, kernels.Tensor{}
	if save != nil {
		x, rstd = save.Layers[0].SumIn, save.Layers[0].RstdIn
	}
	m.Backend.Embed(s, x, m.Embed, sc.Previous, sc.Step)
	m.Backend.RMSNorm(s, st.Normed, x, m.Layers[0].AttnNorm, rstd, m.eps(), sc.Step)
}

// Forward runs layers [l0, l1). It reads the normed input of layer l0 in st.Normed and the residual in st.X, or with a save
// in its layer's SumIn; it leaves the same of layer l1 (after the last layer: the final norm, and the residual in SumOut).
func (m *Model) Forward(s kernels.Stream, st *State, sc StepContext, l0, l1 int, save *Save) {
	for l := l0; l < l1; l++ {
		m.forwardLayer(s, st, sc, l, save, nil)
	}
}

// Recompute fills layer l's part of a save of a Recompute plan again, from its SumIn. st.Normed is overwritten.
func (m *Model) Recompute(s kernels.Stream, st *State, sc StepContext, l int, save *Save) {
	v := &save.Layers[l]
	m.Backend.RMSNorm(s, st.Normed, v.SumIn, m.Layers[l].AttnNorm, v.RstdIn, m.eps(), sc.Step)
	m.forwardLayer(s, st, sc, l, save, nil)
}

// forwardLayer runs one layer. tap, where given, sees each site's input when it is complete and before it is overwritten.
func (m *Model) forwardLayer(s kernels.Stream, st *State, sc StepContext, l int, save *Save, tap func(adapters.Site, kernels.Tensor)) {
	be, w, eps, step := m.Backend, &m.Layers[l], m.eps(), sc.Step
	var (
		v            SaveLayer // zero: nothing is saved
		q, o         = st.Q, st.O
		in, mid, out = st.X, st.X, st.X
		norm, rstd   = m.FinalNorm, kernels.Tensor{}
	)
	if l+1 < len(m.Layers) {
		norm = m.Layers[l+1].AttnNorm
	}
	if save != nil {
		v = save.Layers[l]
		q, o, in, mid = v.Q, v.O, v.SumIn, v.SumMid
		out, rstd = save.SumOut, save.RstdOut
		if l+1 < len(m.Layers) {
			out, rstd = save.Layers[l+1].SumIn, save.Layers[l+1].RstdIn
		}
	}
	linear := func(site adapters.Site, x kernels.Tensor, z kernels.Tensor) kernels.Tensor {
		if tap != nil {
			tap(site, x)
		}
		w := w.Weight(site)
		yz := st.Linear(w)
		be.Linear(s, yz, x, w, step)
		be.Reduce(s, yz, w)
		if z.Present() {
			n := step.Bucket.Tokens
			be.Copy(s, z.RowRange(0, n), yz.RowRange(0, n).ColRange(w.Out(), w.Out()+w.R()))
		}
		return yz
	}

	yz := linear(adapters.AttnIn, st.Normed, v.ZAttnIn)
	be.QKV(s, kernels.QKVArgs{Q: q, YZ: yz, Bias: w.AttnInBias, QNorm: w.QNorm, KNorm: w.KNorm, Eps: eps, Rope: m.Rope,
		Cache: sc.Cache, Layer: l, B: m.B(sc.Table, l, adapters.AttnIn), Pre: v.Pre}, step)
	be.Attention(s, kernels.AttentionArgs{Out: o, Q: q, Cache: sc.Cache, Layer: l, Scale: m.scale(), Window: m.Config.Window(l), LSE: v.LSE}, step)
	yz = linear(adapters.AttnOut, o, v.ZAttnOut)
	be.ResidualNorm(s, kernels.ResidualNormArgs{Out: mid, Normed: st.Normed, X: in, YZ: yz, Bias: w.AttnOutBias, Norm: w.MLPNorm,
		Eps: eps, B: m.B(sc.Table, l, adapters.AttnOut), Rstd: v.RstdMid}, step)
	yz = linear(adapters.MLPIn, st.Normed, v.ZMLPIn)
	be.MLP(s, kernels.MLPArgs{Act: st.Act, YZ: yz, Bias: w.MLPInBias, B: m.B(sc.Table, l, adapters.MLPIn), GateUp: v.GateUp}, step)
	yz = linear(adapters.MLPDown, st.Act, v.ZMLPDown)
	be.ResidualNorm(s, kernels.ResidualNormArgs{Out: out, Normed: st.Normed, X: mid, YZ: yz, Bias: w.MLPDownBias, Norm: norm,
		Eps: eps, B: m.B(sc.Table, l, adapters.MLPDown), Rstd: rstd}, step)
}

// Logits gathers the step's rows from the final norm in st.Normed and multiplies them by the head, into st.Logits.
func (m *Model) Logits(s kernels.Stream, st *State, sc StepContext) {
	m.Backend.GatherRows(s, st.RowsHidden, st.Normed, sc.Step)
	m.Backend.LinearRows(s, st.Logits, st.RowsHidden, m.Head, sc.Step)
}

// Serve enqueues a whole serving step: embeddings, all layers, logits of the step's rows.
func (m *Model) Serve(s kernels.Stream, st *State, sc StepContext) {
	m.EmbedTokens(s, st, sc, nil)
	m.Forward(s, st, sc, 0, len(m.Layers), nil)
	m.Logits(s, st, sc)
}

func (m *Model) scale() float32 { return float32(1 / math.Sqrt(float64(m.Config.HeadDim))) }

func (m *Model) eps() float32 { return float32(m.Config.NormEps) }
