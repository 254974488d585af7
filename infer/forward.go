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

// CacheLayer is the layer of the cache that holds layer l's K and V. A cache of one layer is each layer's in turn.
func (c StepContext) CacheLayer(l int) int { return l % c.Cache.Spec().Layers }

// EmbedTokens writes the step's embeddings to the residual stream and their norm, the input of layer 0, to st.Normed.
// save is optional, here and below.
func (m *Model) EmbedTokens(s kernels.Stream, st *State, sc StepContext, save *Save) {
	x, rstd := st.X, kernels.Tensor{}
	if save != nil {
		x, rstd = save.Layers[0].SumIn, save.Layers[0].RstdIn
		if save.Carry.Present() {
			m.Backend.Zero(s, save.Carry)
		}
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

// Part is a part of a layer: what training runs between two steps of serving. A forward runs them in this order, a backward in the other.
type Part int

const (
	PartAttend Part = iota // attention, from the layer's normed input to the next norm
	PartGateUp             // gate, up and their product
	PartDown               // mlp_down, to the next layer's normed input
	Parts
)

// ForwardPart runs one part of layer l. All of them in order are [Model.Forward].
func (m *Model) ForwardPart(s kernels.Stream, st *State, sc StepContext, l int, part Part, save *Save) {
	m.forwardPart(s, st, sc, l, part, save, nil)
}

// Recomputes reports whether a backward needs Recompute's part.
func (p SavePlan) Recomputes(part Part) bool {
	switch part {
	case PartAttend:
		return p == RecomputeLayer
	case PartGateUp:
		return p >= RecomputeMLP
	}
	return false
}

// Recompute fills what layer l's part of a save lacks after the forward pass, from what that has kept, for the layer's backward: one part
// after the other, as the plan needs them. st is overwritten.
func (m *Model) Recompute(s kernels.Stream, st *State, sc StepContext, l int, part Part, save *Save) {
	v, w, norm := save.Layers[l], &m.Layers[l], m.Backend.RMSNorm
	switch {
	case part == PartAttend:
		norm(s, st.Normed, v.SumIn, w.AttnNorm, kernels.Tensor{}, m.eps(), sc.Step)
		m.attend(s, st, sc, l, v, v.SumIn, v.SumMid, kernels.Tensor{}, nil)
	case save.Plan == RecomputeMLP:
		norm(s, st.Normed, v.SumMid, w.MLPNorm, kernels.Tensor{}, m.eps(), sc.Step)
		m.gateUp(s, st, sc, l, v, nil)
	default:
		m.gateUp(s, st, sc, l, v, nil)
	}
}

// tap, where given, sees each site's input when it is complete and before it is overwritten.
type tap func(adapters.Site, kernels.Tensor)

// forwardLayer runs one layer.
func (m *Model) forwardLayer(s kernels.Stream, st *State, sc StepContext, l int, save *Save, tap tap) {
	for part := range Parts {
		m.forwardPart(s, st, sc, l, part, save, tap)
	}
}

func (m *Model) forwardPart(s kernels.Stream, st *State, sc StepContext, l int, part Part, save *Save, tap tap) {
	var (
		v            SaveLayer // zero: nothing is saved
		in, mid, out = st.X, st.X, st.X
		norm, rstd   = m.FinalNorm, kernels.Tensor{}
		carry        kernels.Tensor
	)
	if l+1 < len(m.Layers) {
		norm = m.Layers[l+1].AttnNorm
	}
	if save != nil {
		v, carry = save.kept(l), save.Carry
		in, mid, out, rstd = v.SumIn, v.SumMid, save.SumOut, save.RstdOut
		if l+1 < len(m.Layers) {
			out, rstd = save.Layers[l+1].SumIn, save.Layers[l+1].RstdIn
		}
	}
	switch part {
	case PartAttend:
		m.attend(s, st, sc, l, v, in, mid, carry, tap)
	case PartGateUp:
		m.gateUp(s, st, sc, l, v, tap)
	case PartDown:
		yz, ref := m.linear(s, st.YZ[adapters.MLPDown], sc, l, adapters.MLPDown, st.Act, v.ZMLPDown, tap)
		var ahead *kernels.KVLayer
		if l+1 < len(m.Layers) && save == nil {
			ahead = &kernels.KVLayer{Cache: sc.Cache, Layer: sc.CacheLayer(l + 1)}
		}
		m.Backend.ResidualNorm(s, kernels.ResidualNormArgs{Out: out, Normed: st.Normed, X: mid, YZ: yz, Bias: m.Layers[l].MLPDownBias, Norm: norm,
			Eps: m.eps(), B: ref, Rstd: rstd, Carry: carry, Fold: true, Ahead: ahead}, sc.Step)
	}
}

// attend is a layer's first half: from its normed input in st.Normed and the residual in to the residual mid and its norm in st.Normed. The carry
// gets what mid's rounding takes and gives nothing: so Recompute, which has none, makes the same mid.
func (m *Model) attend(s kernels.Stream, st *State, sc StepContext, l int, v SaveLayer, in, mid, carry kernels.Tensor, tap tap) {
	be, w, eps, step, layer := m.Backend, &m.Layers[l], m.eps(), sc.Step, sc.CacheLayer(l)
	q, o := st.Q, st.O
	if v.Q.Present() {
		q, o = v.Q, v.O
	}
	yz, ref := m.linear(s, st.YZ[adapters.AttnIn], sc, l, adapters.AttnIn, st.Normed, v.ZAttnIn, tap)
	be.QKV(s, kernels.QKVArgs{Q: q, YZ: yz, Bias: w.AttnInBias, QNorm: w.QNorm, KNorm: w.KNorm, Eps: eps, Rope: m.Rope,
		Cache: sc.Cache, Layer: layer, B: ref, Pre: v.Pre}, step)
	be.Attention(s, kernels.AttentionArgs{Out: o, Q: q, Cache: sc.Cache, Layer: layer, Scale: m.scale(), Window: m.Config.Window(l), LSE: v.LSE}, step)
	yz, ref = m.linear(s, st.YZ[adapters.AttnOut], sc, l, adapters.AttnOut, o, v.ZAttnOut, tap)
	be.ResidualNorm(s, kernels.ResidualNormArgs{Out: mid, Normed: st.Normed, X: in, YZ: yz, Bias: w.AttnOutBias, Norm: w.MLPNorm,
		Eps: eps, B: ref, Rstd: v.RstdMid, Carry: carry}, step)
}

// gateUp takes a layer's second normed input in st.Normed to the product of gate and up in st.Act.
func (m *Model) gateUp(s kernels.Stream, st *State, sc StepContext, l int, v SaveLayer, tap tap) {
	yz, kept := st.YZ[adapters.MLPIn], kernels.Tensor{}
	if v.GateUp.Present() {
		yz, kept = v.GateUp, v.GateUp.ColRange(0, 2*m.Config.FeedForward)
	}
	args := kernels.MLPArgs{Act: st.Act, YZ: yz, Bias: m.Layers[l].MLPInBias, B: m.B(sc.Table, l, adapters.MLPIn), GateUp: kept}
	if tap == nil && !kept.Present() {
		m.Backend.LinearMLP(s, st.Normed, m.Layers[l].Weight(adapters.MLPIn), args, sc.Step)
		return
	}
	_, args.B = m.linear(s, yz, sc, l, adapters.MLPIn, st.Normed, kernels.Tensor{}, tap)
	m.Backend.MLP(s, args, sc.Step)
}

// linear is a site's linear, to yz, and the B that whoever reads that has to add. Its z is kept where z is given.
func (m *Model) linear(s kernels.Stream, yz kernels.Tensor, sc StepContext, l int, site adapters.Site, x, z kernels.Tensor, tap tap) (kernels.Tensor, kernels.BRef) {
	if tap != nil {
		tap(site, x)
	}
	be, w, b := m.Backend, m.Layers[l].Weight(site), m.B(sc.Table, l, site)
	switch {
	case z.Present():
		be.Linear(s, yz, x, w, sc.Step)
	case be.LinearB(s, yz, x, w, b, sc.Step):
		b = kernels.BRef{}
	}
	be.Reduce(s, yz, w)
	if z.Present() {
		n := sc.Step.Bucket.Tokens
		be.Copy(s, z.RowRange(0, n), yz.RowRange(0, n).ColRange(w.Out(), w.Out()+w.R()))
	}
	return yz, b
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
