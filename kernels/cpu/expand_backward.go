package cpu

import (
	"fmt"

	"bhive/kernels"
)

type expandBackwardTask struct {
	b      *Backend
	dy, dz mat
	z      kernels.Tensor
	ref    kernels.BRef
	grad   kernels.GradRef
	r      *kernels.Record
	scaled []float32 // [T, R]: scaling·z
	dzs    int       // parts that are dz's
}

const (
	expandTokens = 32 // of dz, a part
	expandRows   = 64 // of dB, a part
)

// ExpandBackward: dz[t] = dy[t]·B and dB += scaling·dy[t]ᵀ·z[t], in order of t.
func (b *Backend) ExpandBackward(s kernels.Stream, a kernels.ExpandBackwardArgs, step kernels.Step) {
	m, out := step.Bucket.Tokens, a.B.Out
	if a.Grad.Out != out || a.Grad.Offset != a.B.Offset || a.Z.Rows < m || a.Z.Cols != a.DYZ.Cols-out {
		panic(fmt.Sprintf("cpu: expand backward: B of %+v, gradient of %+v, z of [%d, %d]", a.B, a.Grad, a.Z.Rows, a.Z.Cols))
	}
	dyz := matrix(a.DYZ, m, a.DYZ.Cols, "expand backward: dyz")
	t := expandBackwardTask{b: b, dy: dyz.cut(0, out), dz: dyz.cut(out, dyz.cols), z: a.Z, ref: a.B, grad: a.Grad}
	if g := recording(s); g != nil {
		t := t
		g.add(func() { b.runExpandBackward(&t, step) })
		return
	}
	b.runExpandBackward(&t, step)
}

func (b *Backend) runExpandBackward(a *expandBackwardTask, step kernels.Step) {
	t := &b.expandBackward
	scaled := t.scaled
	*t = *a
	t.scaled = scaled
	t.r = b.record(step)
	grown(&t.scaled, step.Bucket.Tokens*t.dz.cols)
	t.scale()
	t.dzs = parts(tokens(t.r), expandTokens)
	n := t.dzs
	if t.grad.Table != nil {
		n += parts(t.grad.Out, expandRows)
	}
	b.pool.run(taskExpandBackward, n)
}

// scale fills scaled with each token's z, times its lane's scaling.
func (t *expandBackwardTask) scale() {
	if t.grad.Table == nil {
		return
	}
	lanes, w := t.grad.Table.(*laneTable), t.dz.cols
	for s := range int(t.r.Head[kernels.HeadSegs]) {
		l := t.r.SegLane[s]
		if l < 0 {
			continue
		}
		for at := int(t.r.SegStart[s]); at < int(t.r.SegStart[s+1]); at++ {
			dst := t.scaled[at*w:][:w]
			from := t.z.RowRange(at, at+1)
			if t.z.DType == kernels.BF16 {
				t.b.k.BF16ToF32(dst, elements[uint16](from, kernels.BF16, "expand backward: z")[:w])
			} else {
				copy(dst, elements[float32](from, kernels.F32, "expand backward: z")[:w])
			}
			t.b.k.Scale(dst, lanes.lanes[l].scaling)
		}
	}
}

func (t *expandBackwardTask) part(_, i int) {
	if i < t.dzs {
		t.shrink(i*expandTokens, min((i+1)*expandTokens, tokens(t.r)))
		return
	}
	i -= t.dzs
	t.gradient(i*expandRows, min((i+1)*expandRows, t.grad.Out))
}

// shrink writes dz of tokens [t0, t1).
func (t *expandBackwardTask) shrink(t0, t1 int) {
	for at := t0; at < t1; at++ {
		clear(t.dz.row(at))
	}
	if t.ref.Table == nil {
		return
	}
	k, table := t.b.k, t.ref.Table.(*adapterTable)
	for s := segmentOf(t.r, t0); t0 < t1; s++ {
		end := min(t1, int(t.r.SegStart[s+1]))
		if slot := t.r.SegAdapter[s]; slot >= 0 && end > t0 {
			e := &table.entries[slot]
			dz, dy, at := t.dz.from(t0), t.dy.from(t0), e.rank*t.ref.Offset
			switch {
			case e.rank == 0:
			case e.block.h != nil:
				k.DotNNBF16(dz.at, dz.ld, dy.at, dy.ld, e.block.h[at:], e.rank, end-t0, t.ref.Out, e.rank, false)
			default:
				k.DotNNF32(dz.at, dz.ld, dy.at, dy.ld, e.block.f[at:], e.rank, end-t0, t.ref.Out, e.rank, false)
			}
		}
		t0 = end
	}
}

// gradient adds to rows [n0, n1) of each lane's dB.
func (t *expandBackwardTask) gradient(n0, n1 int) {
	lanes, w := t.grad.Table.(*laneTable), t.dz.cols
	for s := range int(t.r.Head[kernels.HeadSegs]) {
		id := t.r.SegLane[s]
		if id < 0 {
			continue
		}
		l := &lanes.lanes[id]
		if l.rank == 0 {
			panic(fmt.Sprintf("cpu: expand backward: lane %d is not set", id))
		}
		t0, t1 := int(t.r.SegStart[s]), int(t.r.SegStart[s+1])
		dy := t.dy.cut(n0, n1).from(t0)
		t.b.k.DotTN(l.grad[l.rank*(t.grad.Offset+n0):], l.rank, dy.at, dy.ld, t.scaled[t0*w:], w, t1-t0, n1-n0, l.rank)
	}
}
