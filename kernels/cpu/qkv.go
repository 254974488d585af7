package cpu

import (
	"fmt"

	"bhive/kernels"
)

type qkvTask struct {
	b            *Backend
	q, y, z, pre mat
	bias         []float32
	qNorm, kNorm []float32
	eps          float32
	rope         mat
	cache        *kvCache
	layer        int
	ref          kernels.BRef
	r            *kernels.Record
	heads, group int // query heads; heads that a part takes
	each         int // tokens that a part takes
	spread       int // parts a token block has
}

// QKV adds bias and B·z, norms and rotates the heads, and writes q, and K and V into the cache.
func (b *Backend) QKV(s kernels.Stream, a kernels.QKVArgs, step kernels.Step) {
	c := a.Cache.(*kvCache)
	d, kv, t := c.spec.HeadDim, c.spec.KVHeads, step.Bucket.Tokens
	heads := a.Q.Cols / d
	out := (heads + 2*kv) * d
	if a.B.Table != nil && a.B.Out != out {
		panic(fmt.Sprintf("cpu: qkv: B has %d rows, want %d", a.B.Out, out))
	}
	yz := matrix(a.YZ, t, max(out, a.YZ.Cols), "qkv: yz")
	q := qkvTask{
		b: b, q: matrix(a.Q, t, heads*d, "qkv: q"), y: yz.cut(0, out), z: yz.cut(out, a.YZ.Cols),
		pre: optional(a.Pre, t, (heads+kv)*d, "qkv: pre"), bias: optionalVector(a.Bias, out, "qkv: bias"),
		qNorm: optionalVector(a.QNorm, d, "qkv: q norm"), kNorm: optionalVector(a.KNorm, d, "qkv: k norm"), eps: a.Eps,
		rope: matrix(a.Rope, 0, d, "qkv: rope"), cache: c, layer: a.Layer, ref: a.B, heads: heads,
	}
	if g := recording(s); g != nil {
		q := q
		g.add(func() { b.runQKV(&q, step) })
		return
	}
	b.qkv = q
	b.runQKV(&b.qkv, step)
}

func (b *Backend) runQKV(q *qkvTask, step kernels.Step) {
	b.qkv = *q
	t := &b.qkv
	t.r = b.record(step)
	m, all := tokens(t.r), t.heads+2*t.cache.spec.KVHeads
	t.each = b.share(m)
	t.group = b.split(parts(m, t.each), all)
	t.spread = parts(all, t.group)
	b.pool.run(taskQKV, parts(m, t.each)*t.spread)
}

// split is how many of n columns' units a part takes where there are already outer parts: all where those keep the workers busy.
func (b *Backend) split(outer, n int) int {
	want := parts(4*b.pool.workers, max(1, outer))
	if b.pool.workers == 1 {
		want = 1
	}
	return max(1, parts(n, want))
}

func (t *qkvTask) part(_, i int) {
	t0 := i / t.spread * t.each
	t1 := min(t0+t.each, tokens(t.r))
	d := t.cache.spec.HeadDim
	h0 := i % t.spread * t.group
	h1 := min(h0+t.group, t.heads+2*t.cache.spec.KVHeads)
	y := t.y.cut(h0*d, h1*d)
	if t.bias != nil {
		for at := t0; at < t1; at++ {
			t.b.k.Add(y.row(at), t.bias[h0*d:h1*d])
		}
	}
	t.b.expand(y, t.z, t.ref, t.r, t0, t1, h0*d, (h1-h0)*d)
	for at := t0; at < t1; at++ {
		for h := h0; h < h1; h++ {
			t.head(at, h, y.row(at)[(h-h0)*d:][:d])
		}
	}
}

// head finishes head h of a token: x is its values, queries' heads first, then keys', then values'.
func (t *qkvTask) head(at, h int, x []float32) {
	d, kv := len(x), t.cache.spec.KVHeads
	slot := int(t.r.KVSlot[at])*t.cache.width + (h-t.heads)%kv*d
	if h >= t.heads+kv {
		t.cache.v[t.layer].put(t.b.k, slot, x)
		return
	}
	if t.pre.at != nil {
		copy(t.pre.row(at)[h*d:], x)
	}
	norm := t.qNorm
	if h >= t.heads {
		norm = t.kNorm
	}
	if norm != nil {
		t.b.k.ScaleMul(x, x, t.b.rms(x, t.eps), norm)
	}
	angles := t.rope.row(int(t.r.Position[at]))
	t.b.k.Rope(x, angles[:d/2], angles[d/2:])
	if h < t.heads {
		copy(t.q.row(at)[h*d:], x)
		return
	}
	t.cache.k[t.layer].put(t.b.k, slot, x)
}
