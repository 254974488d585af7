package infer

import (
	"bhive/adapters"
	"bhive/infer/checkpoint"
	"bhive/kernels"
)

// GeometryOf is a configuration as adapters see it.
func GeometryOf(c checkpoint.Config) adapters.Geometry {
	return adapters.Geometry{Layers: c.Layers, Hidden: c.Hidden, QDim: c.Heads * c.HeadDim, KVDim: c.KVHeads * c.HeadDim, FeedForward: c.FeedForward}
}

// Model is a base model on a device: frozen weights with the shared A's stacked under them. It is immutable after Load.
type Model struct {
	Backend   kernels.Backend
	Config    checkpoint.Config
	Geometry  adapters.Geometry
	Positions int             // longest context, in tokens: rows of Rope
	BaseHash  string          // of the checkpoint; see [BaseHash]
	Basis     *adapters.Basis // nil: a model without adapters

	Embed, Head kernels.Weight // [V, H]; the same handle when tied
	FinalNorm   kernels.Tensor // F32 [1, H]
	Rope        kernels.Tensor // F32 [positions, D]
	Layers      []Layer

	weights []kernels.Weight
	tensors []kernels.Tensor
}

// Layer is one layer's weights. Biases and the q/k norms are absent (zero) where the architecture has none.
type Layer struct {
	AttnIn  kernels.Weight // [(Hq+2·Hkv)·D + R, H]
	AttnOut kernels.Weight // [H + R, Hq·D]
	MLPIn   kernels.Weight // [2·F + R, H]
	MLPDown kernels.Weight // [H + R, F]

	AttnInBias, AttnOutBias, MLPInBias, MLPDownBias kernels.Tensor // F32 [1, out]

	AttnNorm, MLPNorm kernels.Tensor // F32 [1, H]
	QNorm, KNorm      kernels.Tensor // F32 [1, D]
}

// R is the rows of A that the weights carry, 0 without a basis.
func (m *Model) R() int {
	if m.Basis == nil {
		return 0
	}
	return m.Basis.R
}

// SiteOut is the output size of a site: the sum over its projections.
func (m *Model) SiteOut(site adapters.Site) int {
	n := 0
	for _, p := range site.Projs() {
		n += m.Geometry.Out(p)
	}
	return n
}

// Weight is a site's fused weight.
func (l *Layer) Weight(site adapters.Site) kernels.Weight {
	return [...]kernels.Weight{l.AttnIn, l.AttnOut, l.MLPIn, l.MLPDown}[site]
}

// offset is the rows of B before the site in the flat layout. The projections of a site follow each other there, so a site's B
// is one matrix [out, r].
func (m *Model) offset(layer int, site adapters.Site) int {
	return m.Geometry.OutOffset(layer, site.Projs()[0])
}

// B names a site's B for all adapters of a table.
func (m *Model) B(table kernels.AdapterTable, layer int, site adapters.Site) kernels.BRef {
	return kernels.BRef{Table: table, Offset: m.offset(layer, site), Out: m.SiteOut(site)}
}

// Grad names a site's dB for all lanes of a table.
func (m *Model) Grad(lanes kernels.LaneTable, layer int, site adapters.Site) kernels.GradRef {
	return kernels.GradRef{Table: lanes, Offset: m.offset(layer, site), Out: m.SiteOut(site)}
}

// KVSpec is the KV cache of this model with that many blocks.
func (m *Model) KVSpec(blocks, blockTokens int) kernels.KVSpec {
	return kernels.KVSpec{Layers: m.Config.Layers, Blocks: blocks, BlockTokens: blockTokens, KVHeads: m.Config.KVHeads, HeadDim: m.Config.HeadDim}
}

// KVTokenBytes is the memory that one token's K and V take in all layers.
func (m *Model) KVTokenBytes() int64 {
	return 2 * int64(m.Config.Layers) * int64(m.Geometry.KVDim) * int64(m.Backend.Info().Working.Size())
}

// Bytes is the memory of the weights.
func (m *Model) Bytes() int64 {
	var n int64
	for _, w := range m.weights {
		n += w.Bytes()
	}
	for _, t := range m.tensors {
		n += t.Elements() * int64(t.DType.Size())
	}
	return n
}

// Close frees the model. It may be called twice.
func (m *Model) Close() {
	for _, w := range m.weights {
		m.Backend.FreeWeight(w)
	}
	for _, t := range m.tensors {
		m.Backend.Free(t)
	}
	m.weights, m.tensors = nil, nil
}
