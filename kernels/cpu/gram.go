package cpu

import (
	"fmt"

	"bhive/kernels"
)

type gramTask struct {
	b    *Backend
	c, x mat
	r    *kernels.Record
}

const gramRows = 32 // of c, a part

// Gram: c += Σ x[t]ᵀ·x[t] over the tokens with a label, in order.
func (b *Backend) Gram(s kernels.Stream, c, x kernels.Tensor, step kernels.Step) {
	if !step.Bucket.Training {
		panic(fmt.Sprintf("cpu: gram: a step of %d tokens without labels", step.Bucket.Tokens))
	}
	cm, xm := matrix(c, x.Cols, x.Cols, "gram: c"), matrix(x, step.Bucket.Tokens, x.Cols, "gram: x")
	if g := recording(s); g != nil {
		g.add(func() { b.runGram(cm, xm, step) })
		return
	}
	b.runGram(cm, xm, step)
}

func (b *Backend) runGram(c, x mat, step kernels.Step) {
	b.gram = gramTask{b, c, x, b.record(step)}
	b.pool.run(taskGram, parts(x.cols, gramRows))
}

func (t *gramTask) part(_, i int) {
	n0 := i * gramRows
	n1 := min(n0+gramRows, t.x.cols)
	c := t.c.from(n0)
	for at, m := 0, tokens(t.r); at < m; {
		if t.r.Label[at] < 0 {
			at++
			continue
		}
		end := at + 1
		for end < m && t.r.Label[end] >= 0 {
			end++
		}
		x := t.x.from(at)
		t.b.k.DotTN(c.at, c.ld, x.at[n0:], x.ld, x.at, x.ld, end-at, n1-n0, t.x.cols)
		at = end
	}
}
