package cpu

import "bhive/kernels"

type normBackwardTask struct {
	b         *Backend
	dx, dy, x mat
	w, rstd   []float32
	m, each   int
}

// NormBackward: dx[t] += rstd·(w·dy − x·rstd²·mean(w·dy·x)).
func (b *Backend) NormBackward(s kernels.Stream, dx, dy, x, w, rstd kernels.Tensor, step kernels.Step) {
	n, h := step.Bucket.Tokens, x.Cols
	t := normBackwardTask{b: b, dx: matrix(dx, n, h, "norm backward: dx"), dy: matrix(dy, n, h, "norm backward: dy"),
		x: matrix(x, n, h, "norm backward: x"), w: vector(w, h, "norm backward: w"), rstd: vector(rstd, n, "norm backward: rstd")}
	if g := recording(s); g != nil {
		t := t
		g.add(func() { b.runNormBackward(&t, step) })
		return
	}
	b.runNormBackward(&t, step)
}

func (b *Backend) runNormBackward(a *normBackwardTask, step kernels.Step) {
	b.normBackward = *a
	t := &b.normBackward
	t.m = tokens(b.record(step))
	t.each = b.share(t.m)
	b.pool.run(taskNormBackward, parts(t.m, t.each))
}

func (t *normBackwardTask) part(worker, i int) {
	wdy := grown(&t.b.scratch[worker].a, t.x.cols)
	for at := i * t.each; at < min((i+1)*t.each, t.m); at++ {
		t.b.normBackwardRow(t.dx.row(at), t.dy.row(at), t.x.row(at), t.w, t.rstd[at], wdy)
	}
}

// normBackwardRow adds one row's gradient to dx; wdy is scratch.
func (b *Backend) normBackwardRow(dx, dy, x, w []float32, rstd float32, wdy []float32) {
	b.k.ScaleMul(wdy, dy, rstd, w)
	mean := b.k.DotF32(wdy, x) / float32(len(x))
	b.k.Add(dx, wdy)
	b.k.AxpyF32(dx, -rstd*rstd*mean, x)
}
