package infer

import (
	"fmt"

	"bhive/adapters"
	"bhive/kernels"
)

// State holds the activations of one step: of at most Tokens tokens and Rows rows of logits. Serving owns one, training another for its samples and
// what its passes need of a third; a State belongs to one stream at a time.
type State struct {
	Tokens, Rows int

	X, Normed  kernels.Tensor                    // [T, H]: the residual stream; the normed input of the next linear
	YZ         [adapters.NumSites]kernels.Tensor // [T, out+R]: what a site's linear writes; in one place, outside training
	Q, O       kernels.Tensor                    // [T, Hq·D]
	Act        kernels.Tensor                    // [T, F]
	RowsHidden kernels.Tensor                    // [rows, H]
	Logits     kernels.Tensor                    // F32 [rows, V]

	// Sampled are two buffers that steps use in turn, so that one step's tokens feed the next while the host reads them.
	Sampled [2]kernels.Sampled

	yz    kernels.Tensor // [1, T·(widest out+R)]
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
	st := newState(m, tokens, rows, func(to *kernels.Tensor, d kernels.DType, rows, cols int) { *to = a.alloc(d, rows, cols) })
	if a.err != nil {
		a.free()
		return nil, fmt.Errorf("allocating activations of %d tokens: %w", tokens, a.err)
	}
	st.mem, st.owned = m.Backend, a.owned
	st.cut(m)
	return st, nil
}

// newState asks for the tensors of a state. When they are there, cut makes the views of them.
func newState(m *Model, tokens, rows int, alloc func(to *kernels.Tensor, d kernels.DType, rows, cols int)) *State {
	c, act := m.Config, m.Backend.Info().Activation
	st := &State{Tokens: tokens, Rows: rows}
	widest := 0
	for site := range adapters.NumSites {
		widest = max(widest, m.SiteOut(site)+m.R())
	}
	alloc(&st.X, act, tokens, c.Hidden)
	alloc(&st.Normed, act, tokens, c.Hidden)
	alloc(&st.yz, act, 1, tokens*widest)
	alloc(&st.Q, act, tokens, c.Heads*c.HeadDim)
	alloc(&st.O, act, tokens, c.Heads*c.HeadDim)
	alloc(&st.Act, act, tokens, c.FeedForward)
	if rows > 0 {
		alloc(&st.RowsHidden, act, rows, c.Hidden)
		alloc(&st.Logits, kernels.F32, rows, c.Vocab)
		for i := range st.Sampled {
			s := &st.Sampled[i]
			alloc(&s.Token, kernels.I32, 1, rows)
			alloc(&s.Logprob, kernels.F32, 1, rows)
			alloc(&s.TopID, kernels.I32, rows, kernels.MaxTopLogprobs)
			alloc(&s.TopLogprob, kernels.F32, rows, kernels.MaxTopLogprobs)
			alloc(&s.Rank, kernels.I32, 1, rows)
		}
	}
	return st
}

// cut makes all of YZ views of one buffer.
func (st *State) cut(m *Model) {
	for site := range adapters.NumSites {
		t, cols := st.yz, m.SiteOut(site)+m.R()
		t.Rows, t.Cols, t.Stride = st.Tokens, cols, cols
		st.YZ[site] = t
	}
}

// Close frees the activations. It may be called twice.
func (st *State) Close() {
	for _, t := range st.owned {
		st.mem.Free(t)
	}
	st.owned = nil
}

// allocator collects tensors and the first failure, so that a partial allocation is given back whole.
type allocator struct {
	mem   kernels.Memory
	owned []kernels.Tensor
	err   error
}

func (a *allocator) alloc(d kernels.DType, rows, cols int) kernels.Tensor {
	if a.err != nil {
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
