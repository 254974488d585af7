package infer

import "bhive/kernels"

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

// Save is what a forward pass keeps for its backward; a [Training] has it. K and V stay in the step's own KV cache.
type Save struct {
	Plan SavePlan
	// Layers are what the layers' backwards read. What the plan recomputes is one set of tensors that all layers share: the forward pass
	// uses them as it goes, and Recompute fills them before the layer's backward.
	Layers []SaveLayer

	SumOut  kernels.Tensor // [T, H]: the residual after the last layer
	RstdOut kernels.Tensor // F32 [1, T]: of the final norm

	// Carry, [T, H], is what the residual stream lacks for being stored rounded, during the forward pass; absent where
	// activations are float32. It keeps the rounding of 2·L sums from adding up: what of bfloat16 costs most (kernels/BENCHMARKS.md).
	Carry kernels.Tensor
}

// kept is the part of a layer that the forward pass writes: not what only its backward reads, where that is computed again.
func (s *Save) kept(l int) SaveLayer {
	v := s.Layers[l]
	switch s.Plan {
	case RecomputeMLP:
		v.GateUp = kernels.Tensor{}
	case RecomputeLayer:
		v.ZAttnIn, v.Pre, v.LSE, v.ZAttnOut, v.GateUp = kernels.Tensor{}, kernels.Tensor{}, kernels.Tensor{}, kernels.Tensor{}, kernels.Tensor{}
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
	GateUp   kernels.Tensor // [T, 2·F+R]: what the linear of mlp_in writes, and then gate and up in its place; beside them z of mlp_in
	ZMLPDown kernels.Tensor // [T, R]
}

// take fills in what is shared.
func (v *SaveLayer) take(shared *SaveLayer) {
	for _, p := range [][2]*kernels.Tensor{{&v.ZAttnIn, &shared.ZAttnIn}, {&v.Pre, &shared.Pre}, {&v.Q, &shared.Q}, {&v.O, &shared.O}, {&v.LSE, &shared.LSE},
		{&v.ZAttnOut, &shared.ZAttnOut}, {&v.SumMid, &shared.SumMid}, {&v.RstdMid, &shared.RstdMid}, {&v.GateUp, &shared.GateUp}} {
		if !p[0].Present() {
			*p[0] = *p[1]
		}
	}
}
