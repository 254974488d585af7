package infer

import (
	"fmt"

	"bhive/adapters"
	"bhive/kernels"
)

// TrainingConfig sizes a Training.
type TrainingConfig struct {
	Plan        SavePlan
	Tokens      int // of a pass
	BlockTokens int // P
	Blocks      int // KV blocks of a pass

	// Samples are serving steps between passes.
	SampleTokens, SampleRows, SampleBlocks int
}

// Training is the memory of training passes, and of the samples between two of them: one allocation, in which tensors that are never alive at once
// share a place. A pass and a sample must not be under way together.
type Training struct {
	Save *Save
	// State is what a forward with Save uses: without X, Q, O and logits, and YZ of mlp_in only where Save keeps no GateUp. The backward has
	// gradients in the places of what they are of: Normed, YZ of attn_in, Act, Save's GateUp.
	State *State
	Cache kernels.KVCache // K and V of a pass; in plan layer of one layer, whichever it is

	DRes   kernels.Tensor // [T, H+R]: gradient of the residual stream, beside it of a z
	DO, DQ kernels.Tensor // [T, Hq·D]
	DK, DV kernels.Tensor // [T, Hkv·D]
	Logits kernels.Tensor // F32 [C, V]: for kernels.TrainingOps.CrossEntropy

	Sample      *State
	SampleCache kernels.KVCache

	be           kernels.Backend
	memory       kernels.Tensor
	kv, sampleKV kernels.KVSpec
	shared       SaveLayer // what the plan computes again, of the layer that is under way
}

// Ops of a pass, in order: of a layer's forward, of the losses, of what is computed again for a layer's backward, and of that; and samples.
const (
	opEmbed = iota
	opAttnNorm
	opAttnIn
	opQKV
	opAttention
	opAttnOut
	opAttnResidual
	opMLPIn
	opMLP
	opMLPDown
	opMLPResidual

	opLoss
	opLossNorm

	againAttnNorm
	againAttnIn
	againQKV
	againAttention
	againAttnOut
	againMLPNorm // of the residual that is kept, or with its sum
	againMLPIn
	againMLP

	backMLPDown
	backMLP
	backMLPIn
	backMLPNorm
	backAttnOut
	backAttention
	backQKV
	backAttnIn
	backAttnNorm

	opSample
)

// NewTraining allocates, or returns kernels.ErrNoMemory with nothing allocated. The model must have adapters (a basis).
func NewTraining(m *Model, c TrainingConfig) (_ *Training, err error) {
	t, l := layTraining(m, c)
	t.be = m.Backend
	if t.memory, err = m.Backend.Alloc(kernels.U8, 1, int(l.place())); err != nil {
		return nil, fmt.Errorf("allocating the memory of passes of %d tokens: %w", c.Tokens, err)
	}
	defer func() {
		if err != nil {
			t.Close()
		}
	}()
	l.bind(t.memory)
	if c.Plan >= RecomputeMLP {
		t.State.YZ[adapters.MLPIn] = t.shared.GateUp
	}
	for i := range t.Save.Layers {
		t.Save.Layers[i].take(&t.shared)
	}
	t.Sample.cut(m)
	if t.Cache, err = m.Backend.NewKVCache(t.kv); err != nil {
		return nil, fmt.Errorf("making the KV cache of passes: %w", err)
	}
	if t.SampleCache, err = m.Backend.NewKVCache(t.sampleKV); err != nil {
		return nil, fmt.Errorf("making the KV cache of samples: %w", err)
	}
	return t, nil
}

// TrainingBytes is the memory that NewTraining allocates.
func TrainingBytes(m *Model, c TrainingConfig) int64 {
	_, l := layTraining(m, c)
	return l.place()
}

// Close frees everything. It may be called twice.
func (t *Training) Close() {
	for _, c := range []*kernels.KVCache{&t.Cache, &t.SampleCache} {
		if *c != nil {
			t.be.FreeKVCache(*c)
			*c = nil
		}
	}
	if t.memory.Present() {
		t.be.Free(t.memory)
		t.memory = kernels.Tensor{}
	}
}

// layTraining says which tensors there are and when each is alive.
func layTraining(m *Model, c TrainingConfig) (*Training, *layout) {
	cc, info, n, r := m.Config, m.Backend.Info(), c.Tokens, m.R()
	act, q, kv := info.Activation, cc.Heads*cc.HeadDim, cc.KVHeads*cc.HeadDim
	t, l := &Training{Save: &Save{Plan: c.Plan, Layers: make([]SaveLayer, len(m.Layers))}, State: &State{Tokens: n}}, &layout{}
	mlp, layer := moments(0), moments(0) // none, where nothing is computed again
	if c.Plan >= RecomputeMLP {
		mlp = ^mlp
	}
	if c.Plan >= RecomputeLayer {
		layer = ^layer
	}

	for i := range t.Save.Layers {
		s := &t.Save.Layers[i]
		residual := whole
		if i == 0 && c.Plan < RecomputeLayer { // no backward reads it
			residual = during(opEmbed, opAttnResidual)
		}
		l.add(&s.SumIn, act, n, cc.Hidden, residual)
		l.add(&s.RstdIn, kernels.F32, 1, n, whole)
		l.add(&s.ZMLPDown, info.Working, n, r, whole)
		if c.Plan < RecomputeLayer {
			layAttention(m, l, s, n, whole)
		}
		if c.Plan < RecomputeMLP {
			l.add(&s.GateUp, act, n, 2*cc.FeedForward+r, whole)
		}
	}
	t.kv, t.sampleKV = m.KVSpec(c.Blocks, c.BlockTokens), m.KVSpec(c.SampleBlocks, c.BlockTokens)
	keys := whole
	if c.Plan >= RecomputeLayer {
		layAttention(m, l, &t.shared, n, 0)
		t.kv.Layers, keys = 1, during(opQKV, opAttention)|during(againQKV, backAttention)
	}
	l.add(&t.kv.In, info.Working, 1, t.kv.Elements(), keys)
	if c.Plan >= RecomputeMLP {
		l.add(&t.shared.GateUp, act, n, 2*cc.FeedForward+r, during(opMLPIn, opMLP)|during(againMLPIn, backMLPIn))
	}
	l.add(&t.Save.SumOut, act, n, cc.Hidden, during(opMLPResidual, opLossNorm))
	l.add(&t.Save.RstdOut, kernels.F32, 1, n, during(opMLPResidual, opLossNorm))
	if act != kernels.F32 {
		l.add(&t.Save.Carry, act, n, cc.Hidden, during(opEmbed, opMLPResidual))
	}

	st := t.State
	l.add(&st.Normed, act, n, cc.Hidden, during(opAttnNorm, opAttnIn)|during(opAttnResidual, opMLPIn)|during(opMLPResidual, opLossNorm)|
		layer&during(againAttnNorm, againAttnIn)|mlp&during(againMLPNorm, againMLPIn)|during(backMLPIn, backMLPNorm)|during(backAttnIn, backAttnNorm))
	l.add(&st.YZ[adapters.AttnIn], act, n, q+2*kv+r, during(opAttnIn, opQKV)|layer&during(againAttnIn, againQKV)|during(backQKV, backAttnIn))
	l.add(&st.YZ[adapters.AttnOut], act, n, cc.Hidden+r, during(opAttnOut, opAttnResidual)|layer&during(againAttnOut, againMLPNorm))
	l.add(&st.Act, act, n, cc.FeedForward, during(opMLP, opMLPDown)|mlp&during(againMLP, againMLP)|during(backMLPDown, backMLP))
	l.add(&st.YZ[adapters.MLPDown], act, n, cc.Hidden+r, during(opMLPDown, opMLPResidual))

	l.add(&t.Logits, kernels.F32, m.Backend.LossTokens(n, m.Head), cc.Vocab, during(opLoss, opLoss))
	l.add(&t.DRes, act, n, cc.Hidden+r, during(opLossNorm, backAttnNorm))
	l.add(&t.DO, act, n, q, during(backAttnOut, backAttention))
	l.add(&t.DQ, act, n, q, during(backAttention, backQKV))
	l.add(&t.DK, act, n, kv, during(backAttention, backQKV))
	l.add(&t.DV, act, n, kv, during(backAttention, backQKV))

	t.Sample = newState(m, c.SampleTokens, c.SampleRows, func(to *kernels.Tensor, d kernels.DType, rows, cols int) {
		l.add(to, d, rows, cols, during(opSample, opSample))
	})
	l.add(&t.sampleKV.In, info.Working, 1, t.sampleKV.Elements(), during(opSample, opSample))
	return t, l
}

// whole is a whole pass.
var whole = during(opEmbed, backAttnNorm)

// layAttention adds what a layer's attention keeps: for the whole pass, or, with 0, for the layer that is under way.
func layAttention(m *Model, l *layout, s *SaveLayer, n int, kept moments) {
	c, info, r := m.Config, m.Backend.Info(), m.R()
	act, q := info.Activation, c.Heads*c.HeadDim
	add := func(to *kernels.Tensor, d kernels.DType, rows, cols int, alive moments) {
		l.add(to, d, rows, cols, alive|kept)
	}
	add(&s.ZAttnIn, info.Working, n, r, during(againAttnIn, backAttnIn))
	if c.QKNorm {
		add(&s.Pre, act, n, (c.Heads+c.KVHeads)*c.HeadDim, during(againQKV, backQKV))
	}
	add(&s.Q, act, n, q, during(opQKV, opAttention)|during(againQKV, backAttention))
	add(&s.O, act, n, q, during(opAttention, opAttnOut)|during(againAttention, backAttention))
	add(&s.LSE, kernels.F32, n, c.Heads, during(againAttention, backAttention))
	add(&s.ZAttnOut, info.Working, n, r, during(againAttnOut, backAttnOut))
	add(&s.SumMid, act, n, c.Hidden, during(opAttnResidual, opMLPResidual)|during(againMLPNorm, backMLPNorm))
	add(&s.RstdMid, kernels.F32, 1, n, during(opAttnResidual, opMLPResidual)|during(againMLPNorm, backMLPNorm))
}
