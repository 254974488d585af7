package infer

import (
	"fmt"

	"bhive/kernels"
)

// State holds the activations of one step: of at most Tokens tokens and Rows rows of logits. Serving and training each own
// one; a State belongs to one stream at a time.
type State struct {
	Tokens, Rows int

	X, Normed  kernels.Tensor // [T, H]: the residual stream; the normed input of the next linear
	YZ         kernels.Tensor // [1, T·(widest out+R)]: what a linear writes; see [State.Linear]
	Q, O       kernels.Tensor // [T, Hq·D]
	Act        kernels.Tensor // [T, F]
	RowsHidden kernels.Tensor // [rows, H]
	Logits     kernels.Tensor // F32 [rows, V]

	// Sampled are two buffers that steps use in turn, so that one step's tokens feed the next while the host reads them.
	Sampled [2]kernels.Sampled

	mem   kernels.Memory
	owned []kernels.Tensor
}

// NewState allocates the activations of steps of up to tokens tokens and rows rows of logits. rows may be 0.
// It returns kernels.ErrNoMemory, with nothing allocated, where they do not fit.
func NewState(m *Model, tokens, rows int) (*State, error) {
	if tokens <= 0 || rows < 0 {
		panic(fmt.Sprintf("infer: a state of %d tokens and %d rows", tokens, rows))
	}
	a := allocator{mem: m.Backend}
	st := newState(m, tokens, rows, &a)
	if a.err != nil {
		a.free()
		return nil, fmt.Errorf("allocating activations of %d tokens: %w", tokens, a.err)
	}
	st.mem, st.owned = m.Backend, a.owned
	return st, nil
}

// StateBytes is the memory that NewState allocates.
func StateBytes(m *Model, tokens, rows int) int64 {
	var a allocator
	newState(m, tokens, rows, &a)
	return a.bytes
}

func newState(m *Model, tokens, rows int, a *allocator) *State {
	c, act := m.Config, m.Backend.Info().Activation
	st := &State{Tokens: tokens, Rows: rows}
	widest := 0
	for _, l := range m.Layers {
		for _, w := range []kernels.Weight{l.AttnIn, l.AttnOut, l.MLPIn, l.MLPDown} {
			widest = max(widest, w.Out()+w.R())
		}
	}
	st.X = a.alloc(act, tokens, c.Hidden)
	st.Normed = a.alloc(act, tokens, c.Hidden)
	st.YZ = a.alloc(act, 1, tokens*widest)
	st.Q = a.alloc(act, tokens, c.Heads*c.HeadDim)
	st.O = a.alloc(act, tokens, c.Heads*c.HeadDim)
	st.Act = a.alloc(act, tokens, c.FeedForward)
	if rows > 0 {
		st.RowsHidden = a.alloc(act, rows, c.Hidden)
		st.Logits = a.alloc(kernels.F32, rows, c.Vocab)
		for i := range st.Sampled {
			st.Sampled[i] = kernels.Sampled{
				Token:      a.alloc(kernels.I32, 1, rows),
				Logprob:    a.alloc(kernels.F32, 1, rows),
				TopID:      a.alloc(kernels.I32, rows, kernels.MaxTopLogprobs),
				TopLogprob: a.alloc(kernels.F32, rows, kernels.MaxTopLogprobs),
				Rank:       a.alloc(kernels.I32, 1, rows),
			}
		}
	}
	return st
}

// Close frees the activations. It may be called twice.
func (st *State) Close() {
	for _, t := range st.owned {
		st.mem.Free(t)
	}
	st.owned = nil
}

// Linear is the view [T, out+R] of YZ that a linear over w writes.
func (st *State) Linear(w kernels.Weight) kernels.Tensor {
	cols := w.Out() + w.R()
	t := st.YZ
	t.Rows, t.Cols, t.Stride = st.Tokens, cols, cols
	return t
}

// allocator collects tensors and the first failure, so that a partial allocation is given back whole. Without a memory it only counts.
type allocator struct {
	mem   kernels.Memory
	bytes int64
	owned []kernels.Tensor
	err   error
}

func (a *allocator) alloc(d kernels.DType, rows, cols int) kernels.Tensor {
	a.bytes += int64(rows) * int64(cols) * int64(d.Size())
	if a.err != nil || a.mem == nil {
		return kernels.Tensor{}
	}
	t, err := a.mem.Alloc(d, rows, cols)
	if err != nil {
		a.err = err
		return kernels.Tensor{}
	}
	a.owned = append(a.owned, t)
	return t
}

func (a *allocator) free() {
	for _, t := range a.owned {
		a.mem.Free(t)
	}
	a.owned = nil
}
