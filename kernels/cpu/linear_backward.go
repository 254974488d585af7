package cpu

import "bhive/kernels"

type linearBackwardTask struct {
	b          *Backend
	dx, dyz    mat
	w          *weight
	m          int
	accumulate bool
	spread     int // column blocks
}

// What a part takes: tokens and columns of dx, and rows of [W; A] at a time.
const (
	backTokens  = 32
	backColumns = 192
	backRows    = 128
)

// LinearBackward: dx[t] = dyz[t]·[W; A], or dx[t] += with accumulate.
func (b *Backend) LinearBackward(s kernels.Stream, dx, dyz kernels.Tensor, w kernels.Weight, accumulate bool, step kernels.Step) {
	own := w.(*weight)
	t := step.Bucket.Tokens
	x, yz := matrix(dx, t, own.in, "linear backward: dx"), matrix(dyz, t, own.rows(), "linear backward: dyz")
	if g := recording(s); g != nil {
		g.add(func() { b.runLinearBackward(x, yz, own, tokens(b.record(step)), accumulate) })
		return
	}
	b.runLinearBackward(x, yz, own, tokens(b.record(step)), accumulate)
}

func (b *Backend) runLinearBackward(dx, dyz mat, w *weight, m int, accumulate bool) {
	b.linearBackward = linearBackwardTask{b, dx, dyz, w, m, accumulate, parts(w.in, backColumns)}
	b.pool.run(taskLinearBackward, parts(m, backTokens)*b.linearBackward.spread)
}

// A part adds up every backRows rows on their own, and then those sums: a chain of additions is short even over a vocabulary.
func (t *linearBackwardTask) part(worker, i int) {
	t0 := i / t.spread * backTokens
	m := min(backTokens, t.m-t0)
	k0 := i % t.spread * backColumns
	k1 := min(k0+backColumns, t.w.in)
	dx, dyz := t.dx.from(t0).cut(k0, k1), t.dyz.from(t0)
	sum := mat{grown(&t.b.scratch[worker].a, backTokens*backColumns), backColumns, m, k1 - k0}
	for n := 0; n < t.w.rows(); n += backRows {
		end := min(n+backRows, t.w.rows())
		if n == 0 && !t.accumulate {
			t.w.dotNN(dx, dyz, m, n, end, k0, k1)
			continue
		}
		t.w.dotNN(sum, dyz, m, n, end, k0, k1)
		for at := range m {
			t.b.k.Add(dx.row(at), sum.row(at))
		}
	}
}
