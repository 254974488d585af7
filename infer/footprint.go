package infer

import (
	"bhive/adapters"
	"bhive/infer/checkpoint"
)

// Footprint is what a model of a shape keeps and moves, in bytes, before there is one: what plans are made of. A loaded model's own bytes are
// the same but for a device's padding.
type Footprint struct {
	Config     checkpoint.Config
	Rows       int     // R, rows of each A; 0: no adapters
	WeightBits float64 // of an element of W, embedding and head: 16 in bfloat16
	WorkBytes  int     // of an element of A, B, K and V
}

// matrices are the elements of all W but the embedding's, and of the embedding or head alone.
func (f Footprint) matrices() (layers, vocabulary int64) {
	g := GeometryOf(f.Config)
	for site := range adapters.NumSites {
		for _, p := range site.Projs() {
			layers += int64(g.Out(p)) * int64(g.In(site))
		}
	}
	return layers * int64(f.Config.Layers), int64(f.Config.Vocab) * int64(f.Config.Hidden)
}

// w is the bytes of n elements of W.
func (f Footprint) w(n int64) int64 { return int64(float64(n) * f.WeightBits / 8) }

// ABytes is the memory of all A's.
func (f Footprint) ABytes() int64 {
	g, in := GeometryOf(f.Config), 0
	for site := range adapters.NumSites {
		in += g.In(site)
	}
	return int64(f.Rows) * int64(in) * int64(f.Config.Layers) * int64(f.WorkBytes)
}

// Bytes is the memory of the weights and A's on a device, without norms, biases and rotations.
func (f Footprint) Bytes() int64 {
	layers, vocabulary := f.matrices()
	if !f.Config.TieEmbeddings {
		vocabulary *= 2
	}
	return f.w(layers+vocabulary) + f.ABytes()
}

// AdapterBytes is the memory of a B of a rank.
func (f Footprint) AdapterBytes(rank int) int64 {
	return int64(rank) * int64(GeometryOf(f.Config).OutTotal()) * int64(f.WorkBytes)
}

// KVTokenBytes is the memory of a token's K and V in all layers.
func (f Footprint) KVTokenBytes() int64 {
	return 2 * int64(f.Config.Layers) * int64(GeometryOf(f.Config).KVDim) * int64(f.WorkBytes)
}

// StepBytes is the least that a decode step reads: W and A once (of an untied embedding only rows, which do not count), the B's of distinct
// adapters, and the context's K and V, as far as layers see it.
func (f Footprint) StepBytes(batch, distinct, rank, context int) int64 {
	layers, vocabulary := f.matrices()
	return f.w(layers+vocabulary) + f.ABytes() + int64(distinct)*f.AdapterBytes(rank) + int64(batch)*readBytes(f.Config, context, f.KVTokenBytes())
}

// readBytes is what a new token reads of a context whose tokens have so many bytes of K and V in all layers together.
func readBytes(c checkpoint.Config, context int, token int64) int64 {
	var seen int64 // tokens, over the layers
	for l := range c.Layers {
		n := context
		if w := c.Window(l); w > 0 {
			n = min(n, w)
		}
		seen += int64(n)
	}
	return seen * token / int64(c.Layers)
}

// TokenFlops is the multiplications and additions of a token's linears with W and A; with head, the head's too.
func (f Footprint) TokenFlops(head bool) float64 {
	layers, vocabulary := f.matrices()
	n := layers + f.ABytes()/int64(f.WorkBytes)
	if head {
		n += vocabulary
	}
	return 2 * float64(n)
}

// StateBytes is about the memory of the activations of steps of up to tokens tokens and rows rows of logits.
func (f Footprint) StateBytes(tokens, rows int) int64 {
	c, g := f.Config, GeometryOf(f.Config)
	widest := max(g.QDim+2*g.KVDim, 2*g.FeedForward, g.Hidden) + f.Rows
	perToken := int64(2*c.Hidden+widest+2*g.QDim+c.FeedForward) * int64(f.WorkBytes)
	perRow := int64(c.Hidden)*int64(f.WorkBytes) + 4*int64(c.Vocab)*2 // logits, and the counts of penalties
	return int64(tokens)*perToken + int64(rows)*perRow
}

// stepBytes is Footprint.StepBytes of a loaded model.
func (m *Model) stepBytes(batch, distinct, rank, context int) int64 {
	var n int64
	for _, w := range m.weights {
		if w != m.Embed || m.Head == m.Embed {
			n += w.Bytes()
		}
	}
	work := int64(m.Backend.Info().Working.Size())
	n += int64(distinct) * int64(rank) * int64(m.Geometry.OutTotal()) * work
	return n + int64(batch)*readBytes(m.Config, context, m.KVTokenBytes())
}
