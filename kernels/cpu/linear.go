package cpu

import (
	"fmt"

	"bhive/kernels"
)

type linearTask struct {
	yz, x mat
	w     *weight
	m     int
}

// linearRows is the rows of [W; A] that a part takes.
const linearRows = 48

// Linear: yz[t] = [x[t]·Wᵀ, round(x[t]·Aᵀ)].
func (b *Backend) Linear(s kernels.Stream, yz, x kernels.Tensor, w kernels.Weight, step kernels.Step) {
	own := w.(*weight)
	y, xm := matrix(yz, step.Bucket.Tokens, own.rows(), "linear: yz"), matrix(x, step.Bucket.Tokens, own.in, "linear: x")
	if g := recording(s); g != nil {
		g.add(func() { b.runLinear(y, xm, own, tokens(b.record(step))) })
		return
	}
	b.runLinear(y, xm, own, tokens(b.record(step)))
}

// LinearRows is Linear over the step's rows of logits.
func (b *Backend) LinearRows(s kernels.Stream, yz, x kernels.Tensor, w kernels.Weight, step kernels.Step) {
	own := w.(*weight)
	if own.r != 0 {
		panic(fmt.Sprintf("cpu: linear rows: a weight with an A of %d rows", own.r))
	}
	y, xm := matrix(yz, step.Bucket.Rows, own.out, "linear rows: yz"), matrix(x, step.Bucket.Rows, own.in, "linear rows: x")
	if g := recording(s); g != nil {
		g.add(func() { b.runLinear(y, xm, own, int(b.record(step).Head[kernels.HeadRows])) })
		return
	}
	b.runLinear(y, xm, own, int(b.record(step).Head[kernels.HeadRows]))
}

func (b *Backend) runLinear(yz, x mat, w *weight, m int) {
	if m == 0 {
		return
	}
	b.linear = linearTask{yz, x, w, m}
	b.pool.run(taskLinear, parts(w.rows(), linearRows))
}

// A part's rows of the weight are read once from memory and serve all tokens.
func (t *linearTask) part(_, i int) {
	t.w.dotNT(t.yz, t.x, t.m, i*linearRows, min((i+1)*linearRows, t.w.rows()))
}

// Reduce does nothing on one device.
func (b *Backend) Reduce(kernels.Stream, kernels.Tensor, kernels.Weight) {}
