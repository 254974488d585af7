package infer

import (
	"context"
	"errors"
	"fmt"
	"math"

	"bhive/adapters"
	"bhive/infer/checkpoint"
	"bhive/kernels"
)

// ErrCheckpoint is returned by Load for a checkpoint whose tensors do not fit its configuration, or whose configuration asks
// for what bhive does not do.
var ErrCheckpoint = errors.New("unusable checkpoint")

// source is where build takes tensors from: by their Hugging Face names. A vector is a matrix with one row or one column.
type source interface {
	Matrix(name string) (kernels.Matrix, error) // an error if absent
	Has(name string) bool
}

// builder collects what a model under construction owns.
type builder struct {
	ctx    context.Context
	m      *Model
	src    source
	stream kernels.Stream
	config LoadConfig
	done   int
	err    error
}

// build puts a model on a device. On error nothing stays allocated.
func build(ctx context.Context, be kernels.Backend, cc checkpoint.Config, src source, basis *adapters.Basis, c LoadConfig) (*Model, error) {
	m := &Model{Backend: be, Config: cc, Geometry: GeometryOf(cc), Positions: cc.MaxPositions, Basis: basis, Layers: make([]Layer, cc.Layers)}
	if c.Positions > 0 {
		m.Positions = min(m.Positions, c.Positions)
	}
	if basis != nil && basis.Geometry != m.Geometry {
		return nil, fmt.Errorf("loading with a basis of geometry %+v, the model has %+v: %w", basis.Geometry, m.Geometry, adapters.ErrBaseMismatch)
	}
	b := &builder{ctx: ctx, m: m, src: src, stream: be.NewStream(), config: c}
	defer be.FreeStream(b.stream)
	m.Embed = b.weight("", nil, part{"model.embed_tokens.weight", cc.Vocab, cc.Hidden})
	m.Head = m.Embed
	if !cc.TieEmbeddings {
		m.Head = b.weight("", nil, part{"lm_head.weight", cc.Vocab, cc.Hidden})
	}
	m.FinalNorm = b.vector(cc.Hidden, "model.norm.weight")
	m.Rope = b.rope()
	for l := range m.Layers {
		b.layer(l, &m.Layers[l])
	}
	if err := b.stream.Sync(); b.err == nil && err != nil {
		b.err = fmt.Errorf("uploading norms and biases: %w", err)
	}
	if b.err != nil {
		m.Close()
		return nil, b.err
	}
	return m, nil
}

type part struct {
	name    string
	out, in int
}

func (b *builder) layer(i int, l *Layer) {
	c, g := &b.m.Config, b.m.Geometry
	pre := fmt.Sprintf("model.layers.%d.", i)
	site := func(s adapters.Site, block string) (kernels.Weight, kernels.Tensor) {
		var parts []part
		var names []string
		outs := []int{}
		for _, p := range s.Projs() {
			parts = append(parts, part{pre + block + p.String() + ".weight", g.Out(p), g.In(s)})
			names = append(names, pre+block+p.String()+".bias")
			outs = append(outs, g.Out(p))
		}
		var a kernels.Matrix
		if b.m.Basis != nil {
			a = bf16Matrix{b.m.Basis.R, g.In(s), b.m.Basis.A(i, s)}
		}
		return b.weight(fmt.Sprintf("layer %d, %v", i, s), a, parts...), b.bias(names, outs)
	}
	l.AttnIn, l.AttnInBias = site(adapters.AttnIn, "self_attn.")
	l.AttnOut, l.AttnOutBias = site(adapters.AttnOut, "self_attn.")
	l.MLPIn, l.MLPInBias = site(adapters.MLPIn, "mlp.")
	l.MLPDown, l.MLPDownBias = site(adapters.MLPDown, "mlp.")
	l.AttnNorm = b.vector(c.Hidden, pre+"input_layernorm.weight")
	l.MLPNorm = b.vector(c.Hidden, pre+"post_attention_layernorm.weight")
	if c.QKNorm {
		l.QNorm = b.vector(c.HeadDim, pre+"self_attn.q_norm.weight")
		l.KNorm = b.vector(c.HeadDim, pre+"self_attn.k_norm.weight")
	}
}

// matrix fetches a tensor and checks its shape.
func (b *builder) matrix(name string, rows, cols int) kernels.Matrix {
	if b.err != nil {
		return nil
	}
	if b.err = b.ctx.Err(); b.err != nil {
		return nil
	}
	t, err := b.src.Matrix(name)
	switch {
	case err != nil:
		b.err = fmt.Errorf("%w: %w", ErrCheckpoint, err)
	case t.Rows() != rows || t.Cols() != cols:
		b.err = fmt.Errorf("%w: tensor %s is [%d, %d], the configuration makes it [%d, %d]", ErrCheckpoint, name, t.Rows(), t.Cols(), rows, cols)
	default:
		return t
	}
	return nil
}

func (b *builder) weight(what string, a kernels.Matrix, parts ...part) kernels.Weight {
	spec := kernels.WeightSpec{A: a, Format: b.config.Format}
	for _, p := range parts {
		spec.Parts = append(spec.Parts, b.matrix(p.name, p.out, p.in))
	}
	if b.err != nil {
		return nil
	}
	if what == "" {
		what = parts[0].name
	}
	w, err := b.m.Backend.NewWeight(spec)
	if err != nil {
		b.err = fmt.Errorf("loading %s: %w", what, err)
		return nil
	}
	b.m.weights = append(b.m.weights, w)
	b.done++
	if b.config.Progress != nil {
		total := 1 + int(adapters.NumSites)*b.m.Config.Layers
		if !b.m.Config.TieEmbeddings {
			total++
		}
		b.config.Progress(b.done, total)
	}
	return w
}

// values reads a vector, whether it comes as a row or as a column.
func (b *builder) values(name string, n int) []float32 {
	if b.err != nil {
		return nil
	}
	t, err := b.src.Matrix(name)
	if err != nil {
		b.err = fmt.Errorf("%w: %w", ErrCheckpoint, err)
		return nil
	}
	rows, cols := t.Rows(), t.Cols()
	if rows*cols != n || (rows != 1 && cols != 1) {
		b.err = fmt.Errorf("%w: tensor %s is [%d, %d], the configuration makes it [%d]", ErrCheckpoint, name, rows, cols, n)
		return nil
	}
	out := make([]float32, n)
	for i := range rows {
		t.Row(i, out[i*cols:(i+1)*cols])
	}
	return out
}

func (b *builder) vector(n int, name string) kernels.Tensor {
	return b.upload(name, 1, n, b.values(name, n))
}

// bias stacks the projections' biases; what has none beside one that has is zero. Without any the tensor is absent.
func (b *builder) bias(names []string, outs []int) kernels.Tensor {
	any := false
	for _, n := range names {
		any = any || b.src.Has(n)
	}
	if !any {
		return kernels.Tensor{}
	}
	var all []float32
	for i, n := range names {
		if b.src.Has(n) {
			all = append(all, b.values(n, outs[i])...)
		} else {
			all = append(all, make([]float32, outs[i])...)
		}
	}
	return b.upload(names[0], 1, len(all), all)
}

// rope computes the rotations as Hugging Face does: the angle is a float32 product.
func (b *builder) rope() kernels.Tensor {
	if b.err == nil && b.m.Config.Rope.Dim != b.m.Config.HeadDim {
		b.err = fmt.Errorf("%w: %d of %d values of a head are rotated; only all of them can be", ErrCheckpoint, b.m.Config.Rope.Dim, b.m.Config.HeadDim)
	}
	if b.err != nil {
		return kernels.Tensor{}
	}
	inverse, factor := b.m.Config.Rope.InvFreq()
	half, n := len(inverse), b.m.Positions
	t := make([]float32, n*2*half)
	for p := range n {
		row := t[p*2*half : (p+1)*2*half]
		for i, f := range inverse {
			angle := float64(float32(p) * f)
			row[i] = float32(math.Cos(angle)) * factor
			row[half+i] = float32(math.Sin(angle)) * factor
		}
	}
	return b.upload("the table of rotations", n, 2*half, t)
}

func (b *builder) upload(what string, rows, cols int, values []float32) kernels.Tensor {
	if b.err != nil {
		return kernels.Tensor{}
	}
	t, err := b.m.Backend.Alloc(kernels.F32, rows, cols)
	if err != nil {
		b.err = fmt.Errorf("loading %s: %w", what, err)
		return kernels.Tensor{}
	}
	b.m.tensors = append(b.m.tensors, t)
	b.m.Backend.Upload(b.stream, t, f32Bytes(values))
	return t
}

// bf16Matrix is a basis' A as a host matrix.
type bf16Matrix struct {
	rows, cols int
	bits       []uint16
}

func (m bf16Matrix) Rows() int { return m.rows }
func (m bf16Matrix) Cols() int { return m.cols }
func (m bf16Matrix) Row(i int, dst []float32) {
	for j, w := range m.bits[i*m.cols : (i+1)*m.cols] {
		dst[j] = math.Float32frombits(uint32(w) << 16)
	}
}
