package cpu

import "bhive/kernels"

// attentionBackwardTask has two passes over the tiles, each of which recomputes the probabilities it needs: dq by tiles of
// queries, then dk and dv by tiles of keys. Every element has one writer and one order of addition.
type attentionBackwardTask struct {
	attentionTask // q, cache, layer, scale, window, record, tiles; out is the saved o, lse the saved one
	dO            mat
	dq, dk, dv    mat
	keys          bool // the second pass
	keyTiles      []tile
}

const keyTokens = 64 // of a tile of keys

// AttentionBackward: the gradients of Attention by q, k and v of the step's own tokens.
func (b *Backend) AttentionBackward(s kernels.Stream, a kernels.AttentionBackwardArgs, step kernels.Step) {
	c := a.Cache.(*kvCache)
	m, n := step.Bucket.Tokens, a.Q.Cols
	t := attentionBackwardTask{
		attentionTask: attentionTask{b: b, out: matrix(a.O, m, n, "attention backward: o"), q: matrix(a.Q, m, n, "attention backward: q"),
			lse: matrix(a.LSE, m, n/c.spec.HeadDim, "attention backward: log-sum-exp"), cache: c, layer: a.Layer, scale: a.Scale,
			window: a.Window, group: n / c.width, blocks: step.Bucket.Blocks},
		dO: matrix(a.DO, m, n, "attention backward: do"), dq: matrix(a.DQ, m, n, "attention backward: dq"),
		dk: matrix(a.DK, m, c.width, "attention backward: dk"), dv: matrix(a.DV, m, c.width, "attention backward: dv"),
	}
	if g := recording(s); g != nil {
		t := t
		g.add(func() { b.runAttentionBackward(&t, step) })
		return
	}
	b.runAttentionBackward(&t, step)
}

func (b *Backend) runAttentionBackward(a *attentionBackwardTask, step kernels.Step) {
	t := &b.attentionBackward
	tiles, keys := t.tiles, t.keyTiles
	*t = *a
	t.r = b.record(step)
	t.tiles, t.keyTiles = t.cutTiles(tiles[:0]), keys[:0]
	for s := range t.r.Head[kernels.HeadSeqs] {
		end := t.r.QueryStart[s+1]
		for at := t.r.QueryStart[s]; at < end; at += keyTokens {
			t.keyTiles = append(t.keyTiles, tile{s, at, min(at+keyTokens, end)})
		}
	}
	kv := t.cache.spec.KVHeads
	b.pool.run(taskAttentionBackward, len(t.tiles)*kv)
	t.keys = true
	b.pool.run(taskAttentionBackward, len(t.keyTiles)*kv)
}

func (t *attentionBackwardTask) part(worker, i int) {
	kv := t.cache.spec.KVHeads
	if t.keys {
		t.keyPart(worker, t.keyTiles[i/kv], i%kv)
		return
	}
	t.queryPart(worker, t.tiles[len(t.tiles)-1-i/kv], i%kv)
}

// queryPart writes dq of one tile's queries: dq = Σ ds·k.
func (t *attentionBackwardTask) queryPart(worker int, tl tile, head int) {
	d := t.cache.spec.HeadDim
	base, _ := t.visible(int(tl.t0))
	_, end := t.visible(int(tl.t1) - 1)
	rows := int(tl.t1-tl.t0) * t.group
	_, ds := t.probabilities(worker, tl, head, base, end)
	dq := grown(&t.b.scratch[worker].d, tileTokens*t.group*d)[:rows*d]
	clear(dq)
	t.combine(&t.b.scratch[worker], dq, ds, tl.seq, base, end, rows, head*d, d, t.cache.k[t.layer])
	w := t.group * d
	for token := int(tl.t0); token < int(tl.t1); token++ {
		copy(t.dq.row(token)[head*w:][:w], dq)
		dq = dq[w:]
	}
}

// keyPart writes dk and dv of one tile's keys: dv = Σ p·do, dk = Σ ds·q over the queries that see them, in order.
func (t *attentionBackwardTask) keyPart(worker int, tl tile, head int) {
	d, k := t.cache.spec.HeadDim, t.b.k
	for at := int(tl.t0); at < int(tl.t1); at++ {
		clear(t.dk.row(at)[head*d:][:d])
		clear(t.dv.row(at)[head*d:][:d])
	}
	base, end := int(t.r.Position[tl.t0]), int(t.r.Position[tl.t1-1])+1
	dk, dv := t.dk.cut(head*d, (head+1)*d).from(int(tl.t0)), t.dv.cut(head*d, (head+1)*d).from(int(tl.t0))
	last := t.r.QueryStart[tl.seq+1]
	if t.window > 0 {
		last = min(last, tl.t1-1+int32(t.window))
	}
	for at := tl.t0; at < last; at += tileTokens {
		q := tile{tl.seq, at, min(at+tileTokens, last)}
		rows, n := int(q.t1-q.t0)*t.group, end-base
		p, ds := t.probabilities(worker, q, head, base, end)
		s := &t.b.scratch[worker]
		k.DotTN(dv.at, dv.ld, p, n, s.a[rows*d:], d, rows, n, d)
		k.DotTN(dk.at, dk.ld, ds, n, s.a, d, rows, n, d)
	}
}

// probabilities gives p and ds = p∘(do·vᵀ − do·o)·scale of a tile's queries over positions [base, end), [rows, end−base], zero
// where a query does not see a position. The worker's scratch a then begins with the tile's q and do, [rows, D] each.
func (t *attentionBackwardTask) probabilities(worker int, tl tile, head, base, end int) (p, ds []float32) {
	d, k, s := t.cache.spec.HeadDim, t.b.k, &t.b.scratch[worker]
	rows, n := int(tl.t1-tl.t0)*t.group, end-base
	a := grown(&s.a, 2*tileTokens*t.group*d)
	q, do := a[:rows*d], a[rows*d:2*rows*d]
	size := max(tileScores, t.group*t.blocks*t.cache.spec.BlockTokens, tileTokens*t.group*keyTokens)
	p, ds = grown(&s.b, size)[:rows*n], grown(&s.c, size)[:rows*n]
	t.pack(q, t.q, tl, head)
	t.pack(do, t.dO, tl, head)
	t.scores(s, p, n, q, tl.seq, base, end, rows, head, t.cache.k[t.layer], t.scale)
	t.scores(s, ds, n, do, tl.seq, base, end, rows, head, t.cache.v[t.layer], 1)
	for row := range rows {
		token, h := int(tl.t0)+row/t.group, head*t.group+row%t.group
		lo, hi := t.visible(token)
		lo, hi = min(max(lo-base, 0), n), min(max(hi-base, 0), n)
		x, dx := p[row*n:][:n], ds[row*n:][:n]
		clear(x[:lo])
		clear(dx[:lo])
		clear(x[max(lo, hi):])
		clear(dx[max(lo, hi):])
		if lo >= hi {
			continue
		}
		x, dx = x[lo:hi], dx[lo:hi]
		k.SoftmaxExp(x, t.lse.row(token)[h])
		delta := k.DotF32(do[row*d:][:d], t.out.row(token)[h*d:][:d])
		for i, v := range dx {
			dx[i] = x[i] * (v - delta) * t.scale
		}
	}
	return p, ds
}
