package infer

import (
	"fmt"

	"bhive/kernels"
)

// SavePlan says what a forward pass keeps for its backward.
type SavePlan struct {
	// Recompute keeps only each layer's SumIn and RstdIn; the rest of a SaveLayer is one set of tensors that all layers share, to
	// be filled again by [Model.Recompute] before the layer's backward.
	Recompute bool
}

// Save is what a forward pass keeps for its backward. K and V stay in the step's own KV cache.
type Save struct {
	Plan   SavePlan
	Layers []SaveLayer

	SumOut  kernels.Tensor // [T, H]: the residual after the last layer
	RstdOut kernels.Tensor // F32 [1, T]: of the final norm

	mem   kernels.Memory
	owned []kernels.Tensor
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
	c, info := m.Config, m.Backend.Info()
	act, work := info.Activation, info.Working
	a := allocator{mem: m.Backend}
	q, r := c.Heads*c.HeadDim, m.R()
	layer := func() (l SaveLayer) {
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
		l.GateUp = a.alloc(act, tokens, 2*c.FeedForward)
		l.ZMLPDown = a.alloc(work, tokens, r)
		return l
	}
	s := &Save{Plan: plan, Layers: make([]SaveLayer, len(m.Layers)), mem: m.Backend}
	var shared SaveLayer
	if plan.Recompute {
		shared = layer()
	}
	for i := range s.Layers {
		if plan.Recompute {
			s.Layers[i] = shared
		} else {
			s.Layers[i] = layer()
		}
		s.Layers[i].SumIn = a.alloc(act, tokens, c.Hidden)
		s.Layers[i].RstdIn = a.alloc(kernels.F32, 1, tokens)
	}
	s.SumOut = a.alloc(act, tokens, c.Hidden)
	s.RstdOut = a.alloc(kernels.F32, 1, tokens)
	if a.err != nil {
		a.free()
		return nil, fmt.Errorf("allocating what a backward of %d tokens reads: %w", tokens, a.err)
	}
	s.owned = a.owned
	return s, nil
}

// Close frees the save. It may be called twice.
func (s *Save) Close() {
	for _, t := range s.owned {
		s.mem.Free(t)
	}
	s.owned = nil
}
