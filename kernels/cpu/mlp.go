package cpu

import (
	"fmt"

	"bhive/kernels"
)

type mlpTask struct {
	b              *Backend
	act, y, z, out mat
	bias           []float32
	ref            kernels.BRef
	r              *kernels.Record
	each           int // tokens that a part takes
	width, spread  int // columns that a part takes; parts a token block has
}

// MLP: with [g, u] = y + bias + B·z: act[t] = silu(g)·u.
func (b *Backend) MLP(s kernels.Stream, a kernels.MLPArgs, step kernels.Step) {
	f, m := a.Act.Cols, step.Bucket.Tokens
	if a.B.Table != nil && a.B.Out != 2*f {
		panic(fmt.Sprintf("cpu: mlp: B has %d rows, want %d", a.B.Out, 2*f))
	}
	yz := matrix(a.YZ, m, max(2*f, a.YZ.Cols), "mlp: yz")
	t := mlpTask{b: b, act: matrix(a.Act, m, f, "mlp: act"), y: yz.cut(0, 2*f), z: yz.cut(2*f, yz.cols),
		out: optional(a.GateUp, m, 2*f, "mlp: gate and up"), bias: optionalVector(a.Bias, 2*f, "mlp: bias"), ref: a.B}
	if g := recording(s); g != nil {
		t := t
		g.add(func() { b.runMLP(&t, step) })
		return
	}
	b.mlp = t
	b.runMLP(&b.mlp, step)
}

// LinearB is Linear; B·z is for who reads it.
func (b *Backend) LinearB(s kernels.Stream, yz, x kernels.Tensor, w kernels.Weight, _ kernels.BRef, step kernels.Step) bool {
	b.Linear(s, yz, x, w, step)
	return false
}

// LinearMLP is Linear and MLP.
func (b *Backend) LinearMLP(s kernels.Stream, x kernels.Tensor, w kernels.Weight, a kernels.MLPArgs, step kernels.Step) {
	b.Linear(s, a.YZ, x, w, step)
	b.MLP(s, a, step)
}

func (b *Backend) runMLP(a *mlpTask, step kernels.Step) {
	b.mlp = *a
	t := &b.mlp
	t.r = b.record(step)
	m := tokens(t.r)
	t.each = b.share(m)
	t.width = (b.split(parts(m, t.each), t.act.cols) + 15) &^ 15
	t.spread = parts(t.act.cols, t.width)
	b.pool.run(taskMLP, parts(m, t.each)*t.spread)
}

func (t *mlpTask) part(_, i int) {
	t0 := i / t.spread * t.each
	t1 := min(t0+t.each, tokens(t.r))
	f := t.act.cols
	c0 := i % t.spread * t.width
	c1 := min(c0+t.width, f)
	for _, half := range [2]int{0, f} {
		y := t.y.cut(half+c0, half+c1)
		if t.bias != nil {
			for at := t0; at < t1; at++ {
				t.b.k.Add(y.row(at), t.bias[half+c0:half+c1])
			}
		}
		t.b.expand(y, t.z, t.ref, t.r, t0, t1, half+c0, c1-c0)
		if t.out.at != nil {
			for at := t0; at < t1; at++ {
				copy(t.out.row(at)[half+c0:], y.row(at))
			}
		}
	}
	for at := t0; at < t1; at++ {
		y := t.y.row(at)
		t.b.k.SiluMul(t.act.row(at)[c0:c1], y[c0:c1], y[f+c0:f+c1])
	}
}
