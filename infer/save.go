package infer

import (
	"fmt"

	"bhive/kernels"
)

// SavePlan says what a forward pass keeps for its backward, and what [Model.Recompute] makes again; from most memory to least.
type SavePlan int

const (
	// RecomputeNone keeps all that a backward reads.
	RecomputeNone SavePlan = iota
	// RecomputeMLP does not keep gate and up.
	RecomputeMLP
	// RecomputeLayer keeps each layer's input and the z of its mlp_down: its attention, its gate and its up run again.
	RecomputeLayer
)

// SavePlans are all plans, by their names.
var SavePlans = []string{"none", "mlp", "layer"}

func (p SavePlan) String() string { return SavePlans[p] }

// Save is what a forward pass keeps for its backward. K and V stay in the step's own KV cache.
type Save struct {
	Plan SavePlan
	// Layers are what the layers' backwards read. What the plan recomputes is one set of tensors that all layers share, of which the
	// forward pass writes nothing and which Recompute fills before the layer's backward.
	Layers []SaveLayer

	SumOut  kernels.Tensor // [T, H]: the residual after the last layer
	RstdOut kernels.Tensor // F32 [1, T]: of the final norm

	// Carry, [T, H], is what the residual stream lacks for being stored rounded, during the forward pass; the owner's, and absent where
	// activations are float32. It keeps the rounding of 2·L sums from adding up: what of bfloat16 costs most (kernels/BENCHMARKS.md).
	Carry kernels.Tensor

	mem   kernels.Memory
	owned []kernels.Tensor
}

// kept is the part of a layer that the forward pass writes.
func (s *Save) kept(l int) SaveLayer {
	v := s.Layers[l]
	switch s.Plan {
	case RecomputeMLP:
		v.GateUp = kernels.Tensor{}
	case RecomputeLayer:
		v = SaveLayer{SumIn: v.SumIn, RstdIn: v.RstdIn, ZMLPDown: v.ZMLPDown}
	}
	return v
}

// SaveLayer is what one layer keeps. Activations have the activation dtype, z the working dtype.
type SaveLayer struct {
	SumIn    kernels.Tensor // [T, H]: the residual at the layer's start, before its attention norm
	RstdIn   kernels.Tensor // F32 [1, T]
	ZAttnIn  kernels.Tensor // [T, R]
	Pre      kernels.Tensor // [T, (Hq+Hkv)·D]: q and k before their norms; absent without q/k norms
	Q, O     kernels.Tensor // [T, Hq·D]
	LSE      kernels.Tensor // F32 [T, Hq]
	ZAttnOut kernels.Tensor // [T, R]
	SumMid   kernels.Tensor // [T, H]: the residual between attention and feed-forward
	RstdMid  kernels.Tensor // F32 [1, T]
	ZMLPIn   kernels.Tensor // [T, R]
	GateUp   kernels.Tensor // [T, 2·F]
	ZMLPDown kernels.Tensor // [T, R]
}

// NewSave allocates a save for steps of up to tokens tokens, or returns kernels.ErrNoMemory with nothing allocated.
// The model must have adapters (a basis).
func NewSave(m *Model, tokens int, plan SavePlan) (*Save, error) {
	a := allocator{mem: m.Backend}
	s := newSave(m, tokens, plan, &a)
	if a.err != nil {
		a.free()
		return nil, fmt.Errorf("allocating what a backward of %d tokens reads: %w", tokens, a.err)
	}
	s.mem, s.owned = m.Backend, a.owned
	return s, nil
}

// SaveBytes is the memory that NewSave allocates.
func SaveBytes(m *Model, tokens int, plan SavePlan) int64 {
	var a allocator
	newSave(m, tokens, plan, &a)
	return a.bytes
}

func newSave(m *Model, tokens int, plan SavePlan, a *allocator) *Save {
	c, info := m.Config, m.Backend.Info()
	act, work := info.Activation, info.Working
	q, r := c.Heads*c.HeadDim, m.R()
	input := func(l *SaveLayer) {
		l.SumIn = a.alloc(act, tokens, c.Hidden)
		l.RstdIn = a.alloc(kernels.F32, 1, tokens)
		l.ZMLPDown = a.alloc(work, tokens, r)
	}
	attention := func(l *SaveLayer) {
		l.ZAttnIn = a.alloc(work, tokens, r)
		if c.QKNorm {
			l.Pre = a.alloc(act, tokens, (c.Heads+c.KVHeads)*c.HeadDim)
		}
		l.Q = a.alloc(act, tokens, q)
		l.O = a.alloc(act, tokens, q)
		l.LSE = a.alloc(kernels.F32, tokens, c.Heads)
		l.ZAttnOut = a.alloc(work, tokens, r)
		l.SumMid = a.alloc(act, tokens, c.Hidden)
		l.RstdMid = a.alloc(kernels.F32, 1, tokens)
		l.ZMLPIn = a.alloc(work, tokens, r)
	}
	gateUp := func(l *SaveLayer) { l.GateUp = a.alloc(act, tokens, 2*c.FeedForward) }

	s := &Save{Plan: plan, Layers: make([]SaveLayer, len(m.Layers))}
	var shared SaveLayer
	if plan >= RecomputeMLP {
		gateUp(&shared)
	}
	if plan >= RecomputeLayer {
		attention(&shared)
	}
	for i := range s.Layers {
		l := &s.Layers[i]
		*l = shared
		input(l)
		if plan < RecomputeLayer {
			attention(l)
		}
		if plan < RecomputeMLP {
			gateUp(l)
		}
	}
	s.SumOut = a.alloc(act, tokens, c.Hidden)
	s.RstdOut = a.alloc(kernels.F32, 1, tokens)
	return s
}

// Close frees the save. It may be called twice.
func (s *Save) Close() {
	for _, t := range s.owned {
		s.mem.Free(t)
	}
	s.owned = nil
}
