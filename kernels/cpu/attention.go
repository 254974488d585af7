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
	tiles := t.tiles
	*t = *a
	t.r = b.record(step)
	t.tiles = t.cutTiles(tiles[:0])
	b.pool.run(taskAttention, len(t.tiles)*t.cache.spec.KVHeads)
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

// part takes one tile and one key head. The last tiles come first: they have the most keys.
//
// A token's softmax runs over its scores from its first visible position on, and its output adds values in order of
// position, one chain an element: neither depends on the tile or on the runs of the cache.
func (t *attentionTask) part(worker, i int) {
	kv := t.cache.spec.KVHeads
	tl, head := t.tiles[len(t.tiles)-1-i/kv], i%kv
	d := t.cache.spec.HeadDim
	s := &t.b.scratch[worker]
	rows := int(tl.t1-tl.t0) * t.group
	base, _ := t.visible(int(tl.t0))
	_, end := t.visible(int(tl.t1) - 1)
	n := end - base
	q := grown(&s.a, 2*tileTokens*t.group*d)
	q, o := q[:rows*d], q[rows*d:2*rows*d]
	scores := grown(&s.b, max(tileScores, t.group*t.blocks*t.cache.spec.BlockTokens))
	t.pack(q, t.q, tl, head)
	t.scores(s, scores, q, tl.seq, base, end, rows, head, t.cache.k[t.layer], t.scale)
	sums := grown(&s.c, tileTokens*t.group)
	for row := range rows {
		token := int(tl.t0) + row/t.group
		lo, hi := t.visible(token)
		x := scores[row*n:][:n]
		clear(x[:lo-base])
		clear(x[hi-base:])
		x = x[lo-base : hi-base]
		top := x[t.b.k.ArgMax(x)]
		sum := softmax(t.b.k, x, top)
		sums[row] = float32(1 / sum)
		if t.lse.at != nil {
			t.lse.row(token)[head*t.group+row%t.group] = float32(float64(top) + math.Log(sum))
		}
	}
	clear(o)
	t.combine(s, o, scores, tl.seq, base, end, rows, head, t.cache.v[t.layer])
	for row := range rows {
		x := o[row*d:][:d]
		t.b.k.Scale(x, sums[row])
		copy(t.out.row(int(tl.t0) + row/t.group)[(head*t.group+row%t.group)*d:], x)
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

// gathered is one head's rows of the cache at positions [lo, hi) of a sequence, and their stride: in place where the blocks follow each
// other, else a copy in buf, since a product over every block of its own costs more than the copy.
func gathered[E any](t *attentionTask, buf *[]E, from []E, seq int32, lo, hi, head int) (rows []E, stride int) {
	d, w := t.cache.spec.HeadDim, t.cache.width
	rs := t.runs(seq, lo, hi)
	slot, n := rs.next()
	if n == hi-lo {
		return from[slot*w+head*d:], w
	}
	rows = grown(buf, gatherRows*d)
	for at := 0; n > 0; slot, n = rs.next() {
		for j := range n {
			copy(rows[at:at+d], from[(slot+j)*w+head*d:])
			at += d
		}
	}
	return rows, d
}

// scores: dst[row, p−base] = scale·q[row]·k[p], for the positions [base, end) of a sequence; dst has end−base columns.
func (t *attentionTask) scores(s *scratch, dst, q []float32, seq int32, base, end, rows, head int, k working, scale float32) {
	d, n := t.cache.spec.HeadDim, end-base
	for lo := base; lo < end; lo += gatherRows {
		hi := min(lo+gatherRows, end)
		if k.h != nil {
			x, stride := gathered(t, &s.h, k.h, seq, lo, hi, head)
			t.b.k.AttnScoresBF16(dst[lo-base:], n, q, d, x, stride, rows, hi-lo, d, scale)
		} else {
			x, stride := gathered(t, &s.f, k.f, seq, lo, hi, head)
			t.b.k.AttnScoresF32(dst[lo-base:], n, q, d, x, stride, rows, hi-lo, d, scale)
		}
	}
}

// combine: o[row] += Σ p[row, p−base]·v[p], for the positions [base, end) of a sequence, ascending.
func (t *attentionTask) combine(s *scratch, o, p []float32, seq int32, base, end, rows, head int, v working) {
	d, n := t.cache.spec.HeadDim, end-base
	for lo := base; lo < end; lo += gatherRows {
		hi := min(lo+gatherRows, end)
		if v.h != nil {
			x, stride := gathered(t, &s.h, v.h, seq, lo, hi, head)
			t.b.k.AttnCombineBF16(o, d, p[lo-base:], n, x, stride, rows, hi-lo, d)
		} else {
			x, stride := gathered(t, &s.f, v.f, seq, lo, hi, head)
			t.b.k.AttnCombineF32(o, d, p[lo-base:], n, x, stride, rows, hi-lo, d)
		}
	}
}
