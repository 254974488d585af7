package cpu

import (
	"fmt"
	"math"

	"bhive/kernels"
)

// tile is a run of one sequence's tokens [t0, t1) whose queries go over the keys together.
type tile struct {
	seq, t0, t1 int32
}

const (
	tileTokens = 16
	tileScores = 1 << 16 // scores that a tile holds at most, where one token alone does not exceed them

	shareKeys   = 256 // keys from which on sharing a part is worth a second pass
	shareRounds = 8   // parts a worker from which on one more of them does not matter
)

type attentionTask struct {
	b      *Backend
	out, q mat
	lse    mat
	cache  *kvCache
	layer  int
	scale  float32
	window int
	r      *kernels.Record
	group  int // query heads a key head
	blocks int // width of the block table
	tiles  []tile

	shares int       // parts that all workers share: the first ones
	scored []float32 // their scores, [shares, stride]
	stride int
	values bool // the second pass, over the shared parts' values
}

// Attention: o[t] = softmax(scale·q[t]·Kᵀ)·V over the visible keys of t's sequence.
func (b *Backend) Attention(s kernels.Stream, a kernels.AttentionArgs, step kernels.Step) {
	c := a.Cache.(*kvCache)
	group := a.Q.Cols / c.width
	if group*c.width != a.Q.Cols || group == 0 {
		panic(fmt.Sprintf("cpu: attention: queries of %d over keys of %d", a.Q.Cols, c.width))
	}
	t := attentionTask{b: b, out: matrix(a.Out, step.Bucket.Tokens, a.Q.Cols, "attention: out"),
		q:   matrix(a.Q, step.Bucket.Tokens, a.Q.Cols, "attention: q"),
		lse: optional(a.LSE, step.Bucket.Tokens, a.Q.Cols/c.spec.HeadDim, "attention: log-sum-exp"), cache: c, layer: a.Layer,
		scale: a.Scale, window: a.Window, group: group, blocks: step.Bucket.Blocks}
	if g := recording(s); g != nil {
		t := t
		g.add(func() { b.runAttention(&t, step) })
		return
	}
	b.runAttention(&t, step)
}

func (b *Backend) runAttention(a *attentionTask, step kernels.Step) {
	t := &b.attention
	tiles, scored := t.tiles, t.scored
	*t = *a
	t.r = b.record(step)
	t.tiles, t.scored = t.cutTiles(tiles[:0]), scored
	parts, workers := len(t.tiles)*t.cache.spec.KVHeads, b.pool.workers
	t.share(parts)
	b.pool.run(taskAttention, parts-t.shares+t.shares*workers)
	if t.shares > 0 {
		t.values = true
		b.pool.run(taskAttention, t.shares*workers)
	}
}

// share decides which parts all workers take together, so that none idles while others do the last: what is left of the parts after
// as many for each. A part is shared without reading a key or value twice, and to the same bits: scores are cut by
// position, the outputs by column.
func (t *attentionTask) share(parts int) {
	workers := t.b.pool.workers
	if t.shares = parts % workers; parts >= shareRounds*workers {
		t.shares = 0
	}
	t.stride = 0
	for i := range t.shares {
		p := t.piece(i)
		if p.n < shareKeys {
			t.shares = 0
			return
		}
		t.stride = max(t.stride, p.rows*p.n)
	}
	grown(&t.scored, t.shares*t.stride)
}

// cutTiles cuts the step's sequences into tiles.
func (t *attentionTask) cutTiles(tiles []tile) []tile {
	for s := range t.r.Head[kernels.HeadSeqs] {
		n := int32(max(1, min(tileTokens, tileScores/max(1, t.group*int(t.r.Context[s])))))
		end := t.r.QueryStart[s+1]
		for at := t.r.QueryStart[s]; at < end; at += n {
			tiles = append(tiles, tile{s, at, min(at+n, end)})
		}
	}
	return tiles
}

// visible is the positions [lo, hi) that a token attends to.
func (t *attentionTask) visible(token int) (lo, hi int) {
	hi = int(t.r.Position[token]) + 1
	if t.window > 0 {
		lo = max(0, hi-t.window)
	}
	return lo, hi
}

// runs is the cache slots of positions [lo, hi) of a sequence.
func (t *attentionTask) runs(seq int32, lo, hi int) runs {
	return runs{blocks: t.r.BlockTable[int(seq)*t.blocks:][:t.blocks], p: t.cache.spec.BlockTokens, at: lo, hi: hi}
}

// piece is a part's work: one tile and one key head.
type piece struct {
	tile
	head    int
	base, n int // the positions that any of the tile's tokens sees: [base, base+n)
	rows    int // tokens · group
}

// piece gives a part. The last tiles come first: they have the most keys.
func (t *attentionTask) piece(i int) piece {
	kv := t.cache.spec.KVHeads
	p := piece{tile: t.tiles[len(t.tiles)-1-i/kv], head: i % kv}
	p.rows = int(p.t1-p.t0) * t.group
	base, _ := t.visible(int(p.t0))
	_, end := t.visible(int(p.t1) - 1)
	p.base, p.n = base, end-base
	return p
}

// part runs a part of the first pass, the shared ones' scores last, or a share of the second pass.
//
// A token's softmax runs over its scores from its first visible position on, and its output adds values in order of
// position, one chain an element: neither depends on the tile, on the runs of the cache or on who shares a part.
func (t *attentionTask) part(worker, i int) {
	workers := t.b.pool.workers
	whole := len(t.tiles)*t.cache.spec.KVHeads - t.shares
	switch {
	case t.values:
		t.valueShare(worker, i/workers, i%workers)
	case i >= whole:
		t.scoreShare(worker, (i-whole)/workers, (i-whole)%workers)
	default:
		t.whole(worker, t.piece(t.shares+i))
	}
}

func (t *attentionTask) whole(worker int, p piece) {
	s := &t.b.scratch[worker]
	q := t.queries(s, p)
	scores := grown(&s.b, max(tileScores, t.group*t.blocks*t.cache.spec.BlockTokens))
	t.scores(s, scores, p.n, q, p.seq, p.base, p.base+p.n, p.rows, p.head, t.cache.k[t.layer], t.scale)
	sums := grown(&s.c, tileTokens*t.group)
	t.softmax(scores, sums, p, true)
	t.output(s, scores, sums, p, 0, t.cache.spec.HeadDim)
}

// scoreShare scores one of the workers' shares of a part's positions.
func (t *attentionTask) scoreShare(worker, i, share int) {
	p := t.piece(i)
	from, to := cut(p.n, t.b.pool.workers, share)
	if from < to {
		q := t.queries(&t.b.scratch[worker], p)
		t.scores(&t.b.scratch[worker], t.scored[i*t.stride+from:], p.n, q, p.seq, p.base+from, p.base+to, p.rows, p.head, t.cache.k[t.layer], t.scale)
	}
}

// valueShare writes one of the workers' shares of a part's columns. Each takes the softmax for itself.
func (t *attentionTask) valueShare(worker, i, share int) {
	p := t.piece(i)
	from, to := cut(t.cache.spec.HeadDim, t.b.pool.workers, share)
	if from == to {
		return
	}
	s := &t.b.scratch[worker]
	scores := grown(&s.b, max(tileScores, t.group*t.blocks*t.cache.spec.BlockTokens))[:p.rows*p.n]
	copy(scores, t.scored[i*t.stride:])
	sums := grown(&s.c, tileTokens*t.group)
	t.softmax(scores, sums, p, from == 0)
	t.output(s, scores, sums, p, from, to)
}

// cut gives the worker's share of n in runs of 16, one vector.
func cut(n, workers, worker int) (from, to int) {
	size := (n + workers - 1) / workers
	size = (size + 15) &^ 15
	return min(worker*size, n), min((worker+1)*size, n)
}

// queries packs a piece's queries; the result is [rows, D], with as much room behind it.
func (t *attentionTask) queries(s *scratch, p piece) []float32 {
	d := t.cache.spec.HeadDim
	q := grown(&s.a, 2*tileTokens*t.group*d)
	t.pack(q, t.q, p.tile, p.head)
	return q[:p.rows*d]
}

// softmax turns a piece's scores [rows, n] into exponentials, zero where a token does not look, and gives the inverse of each row's sum.
func (t *attentionTask) softmax(scores, sums []float32, p piece, lse bool) {
	for row := range p.rows {
		token := int(p.t0) + row/t.group
		lo, hi := t.visible(token)
		x := scores[row*p.n:][:p.n]
		clear(x[:lo-p.base])
		clear(x[hi-p.base:])
		x = x[lo-p.base : hi-p.base]
		top := x[t.b.k.ArgMax(x)]
		sum := softmax(t.b.k, x, top)
		sums[row] = float32(1 / sum)
		if lse && t.lse.at != nil {
			t.lse.row(token)[p.head*t.group+row%t.group] = float32(float64(top) + math.Log(sum))
		}
	}
}

// output combines columns [from, to) of a piece's values.
func (t *attentionTask) output(s *scratch, scores, sums []float32, p piece, from, to int) {
	d, w := t.cache.spec.HeadDim, to-from
	o := grown(&s.a, 2*tileTokens*t.group*d)[:p.rows*w]
	clear(o)
	t.combine(s, o, scores, p.seq, p.base, p.base+p.n, p.rows, p.head*d+from, w, t.cache.v[t.layer])
	for row := range p.rows {
		x, token := o[row*w:][:w], int(p.t0)+row/t.group
		if sum := t.b.k.SumSquares(x); sum-sum != 0 { // it may be what the token does not look at, times 0
			lo, hi := t.visible(token)
			clear(x)
			t.combine(s, x, scores[row*p.n+lo-p.base:], p.seq, lo, hi, 1, p.head*d+from, w, t.cache.v[t.layer])
		}
		t.b.k.Scale(x, sums[row])
		copy(t.out.row(token)[(p.head*t.group+row%t.group)*d+from:], x)
	}
}

// pack copies a tile's rows of one key head's group of heads to dst, [tokens·group, D].
func (t *attentionTask) pack(dst []float32, src mat, tl tile, head int) {
	w := t.group * t.cache.spec.HeadDim
	for token := int(tl.t0); token < int(tl.t1); token++ {
		copy(dst[:w], src.row(token)[head*w:])
		dst = dst[w:]
	}
}

// gatherRows is how many positions are taken together: their rows of one head stay in the first-level cache.
const gatherRows = 256

// gathered is d columns, from one on, of the cache's rows at positions [lo, hi) of a sequence, and their stride: in place where the blocks
// follow each other, else a copy in buf, since a product over every block of its own costs more than the copy.
func gathered[E any](t *attentionTask, buf *[]E, from []E, seq int32, lo, hi, column, d int) (rows []E, stride int) {
	w := t.cache.width
	rs := t.runs(seq, lo, hi)
	slot, n := rs.next()
	if n == hi-lo {
		return from[slot*w+column:], w
	}
	rows = grown(buf, gatherRows*d)
	for at := 0; n > 0; slot, n = rs.next() {
		for j := range n {
			copy(rows[at:at+d], from[(slot+j)*w+column:])
			at += d
		}
	}
	return rows, d
}

// scores: dst[row, p−base] = scale·q[row]·k[p], for the positions [base, end) of a sequence; n is dst's columns.
func (t *attentionTask) scores(s *scratch, dst []float32, n int, q []float32, seq int32, base, end, rows, head int, k working, scale float32) {
	d := t.cache.spec.HeadDim
	for lo := base; lo < end; lo += gatherRows {
		hi := min(lo+gatherRows, end)
		if k.h != nil {
			x, stride := gathered(t, &s.h, k.h, seq, lo, hi, head*d, d)
			t.b.k.AttnScoresBF16(dst[lo-base:], n, q, d, x, stride, rows, hi-lo, d, scale)
		} else {
			x, stride := gathered(t, &s.f, k.f, seq, lo, hi, head*d, d)
			t.b.k.AttnScoresF32(dst[lo-base:], n, q, d, x, stride, rows, hi-lo, d, scale)
		}
	}
}

// combine: o[row] += Σ p[row, p−base]·v[p], for the positions [base, end) of a sequence, ascending; d columns of v from column on.
func (t *attentionTask) combine(s *scratch, o, p []float32, seq int32, base, end, rows, column, d int, v working) {
	n := end - base
	for lo := base; lo < end; lo += gatherRows {
		hi := min(lo+gatherRows, end)
		if v.h != nil {
			x, stride := gathered(t, &s.h, v.h, seq, lo, hi, column, d)
			t.b.k.AttnCombineBF16(o, d, p[lo-base:], n, x, stride, rows, hi-lo, d)
		} else {
			x, stride := gathered(t, &s.f, v.f, seq, lo, hi, column, d)
			t.b.k.AttnCombineF32(o, d, p[lo-base:], n, x, stride, rows, hi-lo, d)
		}
	}
}
