//go:build !purego

package simd

import (
	"runtime"
	"unsafe"
)

// ntTile is a DotNT kernel for tiles of nr weight rows.
type ntTile struct {
	nr  int
	run func(*ntArgs)
}

// nnTile is a DotNN kernel for tiles of mr rows.
type nnTile struct {
	mr  int
	run func(*nnArgs)
}

// nnPanel is a set of DotNN kernels for panels of columns of one width, tallest first. The last has mr = 1.
type nnPanel struct {
	cols  int
	tiles []nnTile
}

// ntTiles[mr-1] are the kernels for mr activation rows, widest first; where there are none, rows go to shorter tiles. The last has nr = 1.
type ntTiles [][]ntTile

// matrixSet holds the kernels of one instruction set and weight format.
type matrixSet struct {
	size   int // bytes of a weight
	nt     ntTiles
	long   []ntTile // for one row of more than shortRow elements
	nn     []nnPanel
	masked bool // a panel may be cut short by the mask of its last vector of 16
}

// shortRow is the length up to which the sums over lanes weigh more than the stream of weights.
const shortRow = 64

// Cache budgets in bytes: what is to stay in the second-level cache while it is used again.
const (
	weightBudget = 256 << 10
	rowBudget    = 384 << 10
	panelBudget  = 192 << 10
)

// hide keeps escape analysis from moving kernel arguments to the heap: kernels do not retain them.
//
//go:nosplit
func hide[T any](p *T) *T {
	x := uintptr(unsafe.Pointer(p)) // the way back hides the flow
	return *(**T)(unsafe.Pointer(&x))
}

// offset moves a pointer to where something is still to be done: never past the end of its slice, which the collector
// would take for a pointer to a neighbour. What is absent stays nil.
func offset(p unsafe.Pointer, bytes int) unsafe.Pointer {
	if p == nil {
		return nil
	}
	return unsafe.Add(p, bytes)
}

// dotNT walks y in tiles. Weights pass in blocks that stay in cache while all rows of x meet them.
func (t *matrixSet) dotNT(a ntArgs, m, n int) {
	if m == 0 || n == 0 {
		return
	}
	if a.k == 0 {
		a.x, a.w, a.s = nil, nil, nil
	}
	top := len(t.nt)
	nb, mb := n, m
	if m > t.height(m, m) {
		nb = max(24, weightBudget/max(1, a.k*t.size)/24*24)
		mb = max(top, rowBudget/max(1, a.k*4)/top*top)
	}
	for n0 := 0; n0 < n; n0 += nb {
		for m0 := 0; m0 < m; m0 += mb {
			cols := min(nb, n-n0)
			b := a
			b.w = offset(a.w, n0*a.ldw)
			b.s = offset(a.s, n0*a.lds)
			for at, end := m0, min(m0+mb, m); at < end; {
				mr := t.height(end-at, m)
				b.mt = (end - at) / mr
				b.y = offset(a.y, at*a.ldy+n0*4)
				b.x = offset(a.x, at*a.ldx)
				tiles := t.nt[mr-1]
				if mr == 1 && a.k > shortRow {
					tiles = t.long
				}
				b.columns(tiles, cols)
				at += b.mt * mr
			}
		}
	}
}

// tallRows is how many rows of activations are still so few that tiles of more than four, which widen weights less often but load more
// activations for a product, are the faster ones.
const tallRows = 16

// height is that of the tiles for the next of so many rows that are left of m.
func (t *matrixSet) height(left, m int) int {
	h := min(left, len(t.nt))
	if h > 4 && (m > tallRows || h == 7) { // 4 and 3 are faster than 6 and 1
		h = 4
	}
	for len(t.nt[h-1]) == 0 {
		h--
	}
	return h
}

// columns runs mt row tiles against n weight rows.
func (a ntArgs) columns(tiles []ntTile, n int) {
	for _, t := range tiles {
		if a.nt = n / t.nr; a.nt == 0 {
			continue
		}
		t.run(hide(&a))
		runtime.KeepAlive(&a)
		done := a.nt * t.nr
		if n -= done; n == 0 {
			return
		}
		a.y = offset(a.y, done*4)
		a.w = offset(a.w, done*a.ldw)
		a.s = offset(a.s, done*a.lds)
	}
}

// dotNN walks c in panels of columns. Terms pass in blocks whose panel stays in cache while all rows meet it; the sum
// goes on from c, so blocks do not change it.
func (t *matrixSet) dotNN(a nnArgs, m, terms, k int) {
	if m == 0 || k == 0 {
		return
	}
	if terms == 0 {
		a.a, a.w, a.s = nil, nil, nil
	}
	for k0, p := 0, 0; k0 < k; {
		panel := t.nn[p]
		cols := min(panel.cols, k-k0)
		if cols < panel.cols && p < len(t.nn)-1 && !(t.masked && cols > panel.cols-16) {
			p++
			continue
		}
		a.mask = 1<<((cols-1)%16+1) - 1
		b := a
		b.w = offset(a.w, k0*t.size)
		b.s = offset(a.s, k0/Block*4)
		block := max(64, panelBudget/(panel.cols*t.size))
		for n0 := 0; ; {
			b.n = min(block, terms-n0)
			c := b
			c.c = offset(a.c, k0*4)
			c.a = offset(a.a, n0*a.aStep)
			c.rows(panel.tiles, m)
			if n0 += b.n; n0 >= terms {
				break
			}
			b.w = offset(b.w, b.n*a.ldw)
			b.s = offset(b.s, b.n*a.lds)
			b.add = 1
		}
		k0 += cols
	}
}

// rows runs m rows of one panel.
func (a nnArgs) rows(tiles []nnTile, m int) {
	for _, t := range tiles {
		if a.mt = m / t.mr; a.mt == 0 {
			continue
		}
		t.run(hide(&a))
		runtime.KeepAlive(&a)
		done := a.mt * t.mr
		if m -= done; m == 0 {
			return
		}
		a.c = offset(a.c, done*a.ldc)
		a.a = offset(a.a, done*a.aRow)
	}
}

func data[T any](s []T) unsafe.Pointer { return unsafe.Pointer(unsafe.SliceData(s)) }

func flag(b bool) int {
	if b {
		return 1
	}
	return 0
}

// matrices fills the matrix functions of k.
func matrices(k *Kernels, f32, bf16, int8s *matrixSet) {
	nt32 := func(y []float32, ldy int, x []float32, ldx int, w []float32, ldw int, m, n, kk, add int) {
		f32.dotNT(ntArgs{y: data(y), x: data(x), w: data(w), ldy: ldy * 4, ldx: ldx * 4, ldw: ldw * 4, k: kk, add: add}, m, n)
	}
	nt16 := func(y []float32, ldy int, x []float32, ldx int, w []uint16, ldw int, m, n, kk, add int) {
		bf16.dotNT(ntArgs{y: data(y), x: data(x), w: data(w), ldy: ldy * 4, ldx: ldx * 4, ldw: ldw * 2, k: kk, add: add}, m, n)
	}
	k.DotNTF32 = func(y []float32, ldy int, x []float32, ldx int, w []float32, ldw int, m, n, kk int) {
		checkNT(len(y), ldy, len(x), ldx, len(w), ldw, m, n, kk)
		nt32(y, ldy, x, ldx, w, ldw, m, n, kk, 0)
	}
	k.DotNTBF16 = func(y []float32, ldy int, x []float32, ldx int, w []uint16, ldw int, m, n, kk int) {
		checkNT(len(y), ldy, len(x), ldx, len(w), ldw, m, n, kk)
		nt16(y, ldy, x, ldx, w, ldw, m, n, kk, 0)
	}
	k.DotNTInt8 = func(y []float32, ldy int, x []float32, ldx int, w []int8, ldw int, s []float32, lds int, m, n, kk int) {
		checkNT(len(y), ldy, len(x), ldx, len(w), ldw, m, n, kk)
		need("DotNT scales", len(s), n, lds, blocks(kk))
		int8s.dotNT(ntArgs{y: data(y), x: data(x), w: data(w), s: data(s), ldy: ldy * 4, ldx: ldx * 4, ldw: ldw, lds: lds * 4, k: kk}, m, n)
	}
	k.ExpandNTF32 = func(y []float32, ldy int, z []float32, ldz int, b []float32, ldb int, m, n, r int) {
		checkExpand(len(y), ldy, len(z), ldz, len(b), ldb, m, n, r)
		if r > 0 {
			nt32(y, ldy, z, ldz, b, ldb, m, n, r, 1)
		}
	}
	k.ExpandNTBF16 = func(y []float32, ldy int, z []float32, ldz int, b []uint16, ldb int, m, n, r int) {
		checkExpand(len(y), ldy, len(z), ldz, len(b), ldb, m, n, r)
		if r > 0 {
			nt16(y, ldy, z, ldz, b, ldb, m, n, r, 1)
		}
	}
	k.AttnScoresF32 = func(scores []float32, lds int, q []float32, ldq int, kk []float32, ldk int, g, n, d int, scale float32) {
		checkNT(len(scores), lds, len(q), ldq, len(kk), ldk, g, n, d)
		nt32(scores, lds, q, ldq, kk, ldk, g, n, d, 0)
		for i := range g {
			k.Scale(scores[i*lds:][:n], scale)
		}
	}
	k.AttnScoresBF16 = func(scores []float32, lds int, q []float32, ldq int, kk []uint16, ldk int, g, n, d int, scale float32) {
		checkNT(len(scores), lds, len(q), ldq, len(kk), ldk, g, n, d)
		nt16(scores, lds, q, ldq, kk, ldk, g, n, d, 0)
		for i := range g {
			k.Scale(scores[i*lds:][:n], scale)
		}
	}
	k.DotF32 = func(x, y []float32) float32 {
		atLeast("Dot y", len(y), len(x))
		var r [1]float32
		nt32(r[:], 1, x, 0, y, 0, 1, 1, len(x), 0)
		return r[0]
	}
	k.DotBF16 = func(x []float32, y []uint16) float32 {
		atLeast("Dot y", len(y), len(x))
		var r [1]float32
		nt16(r[:], 1, x, 0, y, 0, 1, 1, len(x), 0)
		return r[0]
	}
	k.SumSquares = func(x []float32) float32 { return k.DotF32(x, x) }
	columns(k, f32, bf16, int8s)
}

// columns fills the functions of k that reduce over rows.
func columns(k *Kernels, f32, bf16, int8s *matrixSet) {
	nn32 := func(dx []float32, lddx int, dy []float32, lddy int, w []float32, ldw int, m, n, kk, add int) {
		f32.dotNN(nnArgs{c: data(dx), a: data(dy), w: data(w), ldc: lddx * 4, aRow: lddy * 4, aStep: 4, ldw: ldw * 4, add: add}, m, n, kk)
	}
	nn16 := func(dx []float32, lddx int, dy []float32, lddy int, w []uint16, ldw int, m, n, kk, add int) {
		bf16.dotNN(nnArgs{c: data(dx), a: data(dy), w: data(w), ldc: lddx * 4, aRow: lddy * 4, aStep: 4, ldw: ldw * 2, add: add}, m, n, kk)
	}
	k.DotNNF32 = func(dx []float32, lddx int, dy []float32, lddy int, w []float32, ldw int, m, n, kk int, accumulate bool) {
		checkNN(len(dx), lddx, len(dy), lddy, len(w), ldw, m, n, kk)
		nn32(dx, lddx, dy, lddy, w, ldw, m, n, kk, flag(accumulate))
	}
	k.DotNNBF16 = func(dx []float32, lddx int, dy []float32, lddy int, w []uint16, ldw int, m, n, kk int, accumulate bool) {
		checkNN(len(dx), lddx, len(dy), lddy, len(w), ldw, m, n, kk)
		nn16(dx, lddx, dy, lddy, w, ldw, m, n, kk, flag(accumulate))
	}
	k.DotNNInt8 = func(dx []float32, lddx int, dy []float32, lddy int, w []int8, ldw int, s []float32, lds int, m, n, kk int, accumulate bool) {
		checkNN(len(dx), lddx, len(dy), lddy, len(w), ldw, m, n, kk)
		need("DotNN scales", len(s), n, lds, blocks(kk))
		int8s.dotNN(nnArgs{c: data(dx), a: data(dy), w: data(w), s: data(s), ldc: lddx * 4, aRow: lddy * 4, aStep: 4, ldw: ldw, lds: lds * 4,
			add: flag(accumulate)}, m, n, kk)
	}
	k.DotTN = func(db []float32, lddb int, dy []float32, lddy int, z []float32, ldz int, m, n, r int) {
		checkTN(len(db), lddb, len(dy), lddy, len(z), ldz, m, n, r)
		f32.dotNN(nnArgs{c: data(db), a: data(dy), w: data(z), ldc: lddb * 4, aRow: 4, aStep: lddy * 4, ldw: ldz * 4, add: 1}, n, m, r)
	}
	k.AttnCombineF32 = func(o []float32, ldo int, p []float32, ldp int, v []float32, ldv int, g, n, d int) {
		checkNN(len(o), ldo, len(p), ldp, len(v), ldv, g, n, d)
		nn32(o, ldo, p, ldp, v, ldv, g, n, d, 1)
	}
	k.AttnCombineBF16 = func(o []float32, ldo int, p []float32, ldp int, v []uint16, ldv int, g, n, d int) {
		checkNN(len(o), ldo, len(p), ldp, len(v), ldv, g, n, d)
		nn16(o, ldo, p, ldp, v, ldv, g, n, d, 1)
	}
	k.AxpyF32 = func(y []float32, a float32, x []float32) {
		atLeast("Axpy y", len(y), len(x))
		p := [1]float32{a}
		nn32(y, 0, p[:], 0, x, 0, 1, 1, len(x), 1)
	}
	k.AxpyBF16 = func(y []float32, a float32, x []uint16) {
		atLeast("Axpy y", len(y), len(x))
		p := [1]float32{a}
		nn16(y, 0, p[:], 0, x, 0, 1, 1, len(x), 1)
	}
}
