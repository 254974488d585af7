package cpu

import "bhive/kernels"

type embedTask struct {
	x        mat
	w        *weight
	previous []int32
	r        *kernels.Record
}

// Embed: x[t] = E[token[t]].
func (b *Backend) Embed(s kernels.Stream, x kernels.Tensor, table kernels.Weight, previous kernels.Sampled, step kernels.Step) {
	w := table.(*weight)
	xm := matrix(x, step.Bucket.Tokens, w.in, "embed: x")
	if g := recording(s); g != nil {
		token := previous.Token
		g.add(func() { b.runEmbed(xm, w, token, step) })
		return
	}
	b.runEmbed(xm, w, previous.Token, step)
}

func (b *Backend) runEmbed(x mat, w *weight, previous kernels.Tensor, step kernels.Step) {
	t := &b.embed
	*t = embedTask{x: x, w: w, r: b.record(step)}
	if previous.Present() {
		t.previous = ints(previous, "embed: previous tokens")
	}
	b.pool.run(taskEmbed, (tokens(t.r)+embedTokens-1)/embedTokens)
}

const embedTokens = 32 // a part

func (t *embedTask) part(_, i int) {
	for at := i * embedTokens; at < min((i+1)*embedTokens, tokens(t.r)); at++ {
		id := t.r.Token[at]
		if f := t.r.Feed[at]; f >= 0 {
			id = max(t.previous[f], 0) // −1: that row had no draw
		}
		t.w.row(int(id), t.x.row(at))
	}
}

// GatherRows: y[i] = x[RowToken[i]].
func (b *Backend) GatherRows(s kernels.Stream, y, x kernels.Tensor, step kernels.Step) {
	ym := matrix(y, step.Bucket.Rows, y.Cols, "gather: y")
	xm := matrix(x, step.Bucket.Tokens, y.Cols, "gather: x")
	if g := recording(s); g != nil {
		g.add(func() { b.runGather(ym, xm, step) })
		return
	}
	b.runGather(ym, xm, step)
}

func (b *Backend) runGather(y, x mat, step kernels.Step) {
	r := b.record(step)
	for i := range int(r.Head[kernels.HeadRows]) {
		copy(y.row(i), x.row(int(r.RowToken[i])))
	}
}
