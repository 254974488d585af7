package cpu

import (
	"fmt"

	"bhive/kernels"
)

type qkvBackwardTask struct {
	b              *Backend
	dy, dq, dk, dv mat
	rope, pre      mat
	qNorm, kNorm   []float32
	eps            float32
	heads, kv, d   int
	r              *kernels.Record
	each           int
}

// QKVBackward: dy = [normᵀ(ropeᵀ(dq)), normᵀ(ropeᵀ(dk)), dv].
func (b *Backend) QKVBackward(s kernels.Stream, a kernels.QKVBackwardArgs, step kernels.Step) {
	m, d := step.Bucket.Tokens, a.DQ.Cols/a.Heads
	q, kv := a.Heads*d, a.KVHeads*d
	if (a.QNorm.Present() || a.KNorm.Present()) && !a.Pre.Present() {
		panic(fmt.Sprintf("cpu: qkv backward: norms of %d heads without what was normed", a.Heads))
	}
	t := qkvBackwardTask{b: b, dy: matrix(a.DY, m, q+2*kv, "qkv backward: dy"), dq: matrix(a.DQ, m, q, "qkv backward: dq"),
		dk: matrix(a.DK, m, kv, "qkv backward: dk"), dv: matrix(a.DV, m, kv, "qkv backward: dv"), rope: matrix(a.Rope, 0, d, "qkv backward: rope"),
		pre: optional(a.Pre, m, q+kv, "qkv backward: pre"), qNorm: optionalVector(a.QNorm, d, "qkv backward: q norm"),
		kNorm: optionalVector(a.KNorm, d, "qkv backward: k norm"), eps: a.Eps, heads: a.Heads, kv: a.KVHeads, d: d}
	if g := recording(s); g != nil {
		t := t
		g.add(func() { b.runQKVBackward(&t, step) })
		return
	}
	b.runQKVBackward(&t, step)
}

func (b *Backend) runQKVBackward(a *qkvBackwardTask, step kernels.Step) {
	b.qkvBackward = *a
	t := &b.qkvBackward
	t.r = b.record(step)
	t.each = b.share(tokens(t.r))
	b.pool.run(taskQKVBackward, parts(tokens(t.r), t.each))
}

func (t *qkvBackwardTask) part(worker, i int) {
	d := t.d
	wdy := grown(&t.b.scratch[worker].a, 2*d)
	for at := i * t.each; at < min((i+1)*t.each, tokens(t.r)); at++ {
		dy := t.dy.row(at)
		copy(dy, t.dq.row(at))
		copy(dy[t.heads*d:], t.dk.row(at))
		copy(dy[(t.heads+t.kv)*d:], t.dv.row(at))
		angles := t.rope.row(int(t.r.Position[at]))
		for h := range t.heads + t.kv {
			x := dy[h*d:][:d]
			t.b.k.RopeInverse(x, angles[:d/2], angles[d/2:])
			norm := t.qNorm
			if h >= t.heads {
				norm = t.kNorm
			}
			if norm == nil {
				continue
			}
			pre := t.pre.row(at)[h*d:][:d]
			copy(wdy[d:], x)
			clear(x)
			t.b.normBackwardRow(x, wdy[d:2*d], pre, norm, t.b.rms(pre, t.eps), wdy[:d])
		}
	}
}
