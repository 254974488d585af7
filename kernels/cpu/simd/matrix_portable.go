package simd

import "math"

func widen(b uint16) float32 { return math.Float32frombits(uint32(b) << 16) }

// lanes are the 16 partial sums of a reduction.
type lanes [16]float32

// sum adds the lanes in the fixed order: i and i+8, then i+4, i+2, i+1.
func (l *lanes) sum() float32 {
	for h := 8; h > 0; h /= 2 {
		for i := range h {
			l[i] += l[i+h]
		}
	}
	return l[0]
}

func dotF32(x, w []float32) float32 {
	var acc lanes
	w = w[:len(x)]
	for len(x) >= 16 {
		for j := range 16 {
			acc[j] += x[j] * w[j]
		}
		x, w = x[16:], w[16:]
	}
	for j := range x {
		acc[j] += x[j] * w[j]
	}
	return acc.sum()
}

func dotBF16(x []float32, w []uint16) float32 {
	var acc lanes
	w = w[:len(x)]
	for len(x) >= 16 {
		for j := range 16 {
			acc[j] += x[j] * widen(w[j])
		}
		x, w = x[16:], w[16:]
	}
	for j := range x {
		acc[j] += x[j] * widen(w[j])
	}
	return acc.sum()
}

func dotInt8(x []float32, w []int8, s []float32) float32 {
	var acc lanes
	w = w[:len(x)]
	for i := range x {
		acc[i%16] += x[i] * (float32(w[i]) * s[i/Block])
	}
	return acc.sum()
}

func dotNTF32(y []float32, ldy int, x []float32, ldx int, w []float32, ldw int, m, n, k int) {
	checkNT(len(y), ldy, len(x), ldx, len(w), ldw, m, n, k)
	for i := range m {
		for j := range n {
			y[i*ldy+j] = dotF32(x[i*ldx:][:k], w[j*ldw:])
		}
	}
}

func dotNTBF16(y []float32, ldy int, x []float32, ldx int, w []uint16, ldw int, m, n, k int) {
	checkNT(len(y), ldy, len(x), ldx, len(w), ldw, m, n, k)
	for i := range m {
		for j := range n {
			y[i*ldy+j] = dotBF16(x[i*ldx:][:k], w[j*ldw:])
		}
	}
}

func dotNTInt8(y []float32, ldy int, x []float32, ldx int, w []int8, ldw int, s []float32, lds int, m, n, k int) {
	checkNT(len(y), ldy, len(x), ldx, len(w), ldw, m, n, k)
	need("DotNT scales", len(s), n, lds, blocks(k))
	for i := range m {
		for j := range n {
			y[i*ldy+j] = dotInt8(x[i*ldx:][:k], w[j*ldw:], s[j*lds:])
		}
	}
}

func checkNT(y, ldy, x, ldx, w, ldw, m, n, k int) {
	need("DotNT y", y, m, ldy, n)
	need("DotNT x", x, m, ldx, k)
	need("DotNT w", w, n, ldw, k)
}

func checkNN(dx, lddx, dy, lddy, w, ldw, m, n, k int) {
	need("DotNN dx", dx, m, lddx, k)
	need("DotNN dy", dy, m, lddy, n)
	need("DotNN w", w, n, ldw, k)
}

func checkTN(db, lddb, dy, lddy, z, ldz, m, n, r int) {
	need("DotTN db", db, n, lddb, r)
	need("DotTN dy", dy, m, lddy, n)
	need("DotTN z", z, m, ldz, r)
}

func checkExpand(y, ldy, z, ldz, b, ldb, m, n, r int) {
	need("ExpandNT y", y, m, ldy, n)
	need("ExpandNT z", z, m, ldz, r)
	need("ExpandNT b", b, n, ldb, r)
}

func axpyF32(y []float32, a float32, x []float32) {
	y = y[:len(x)]
	for i, v := range x {
		y[i] += a * v
	}
}

func axpyBF16(y []float32, a float32, x []uint16) {
	y = y[:len(x)]
	for i, v := range x {
		y[i] += a * widen(v)
	}
}

func dotNNF32(dx []float32, lddx int, dy []float32, lddy int, w []float32, ldw int, m, n, k int, accumulate bool) {
	checkNN(len(dx), lddx, len(dy), lddy, len(w), ldw, m, n, k)
	if k == 0 {
		return
	}
	for i := range m {
		row := dx[i*lddx:][:k]
		if !accumulate {
			clear(row)
		}
		for j := range n {
			axpyF32(row, dy[i*lddy+j], w[j*ldw:][:k])
		}
	}
}

func dotNNBF16(dx []float32, lddx int, dy []float32, lddy int, w []uint16, ldw int, m, n, k int, accumulate bool) {
	checkNN(len(dx), lddx, len(dy), lddy, len(w), ldw, m, n, k)
	if k == 0 {
		return
	}
	for i := range m {
		row := dx[i*lddx:][:k]
		if !accumulate {
			clear(row)
		}
		for j := range n {
			axpyBF16(row, dy[i*lddy+j], w[j*ldw:][:k])
		}
	}
}

func dotNNInt8(dx []float32, lddx int, dy []float32, lddy int, w []int8, ldw int, s []float32, lds int, m, n, k int, accumulate bool) {
	checkNN(len(dx), lddx, len(dy), lddy, len(w), ldw, m, n, k)
	need("DotNN scales", len(s), n, lds, blocks(k))
	if k == 0 {
		return
	}
	for i := range m {
		row := dx[i*lddx:][:k]
		if !accumulate {
			clear(row)
		}
		for j := range n {
			a, q, sc := dy[i*lddy+j], w[j*ldw:][:k], s[j*lds:]
			for c := range row {
				row[c] += a * (float32(q[c]) * sc[c/Block])
			}
		}
	}
}

func dotTN(db []float32, lddb int, dy []float32, lddy int, z []float32, ldz int, m, n, r int) {
	checkTN(len(db), lddb, len(dy), lddy, len(z), ldz, m, n, r)
	if r == 0 {
		return
	}
	for i := range m {
		for j := range n {
			axpyF32(db[j*lddb:][:r], dy[i*lddy+j], z[i*ldz:][:r])
		}
	}
}

func expandNTF32(y []float32, ldy int, z []float32, ldz int, b []float32, ldb int, m, n, r int) {
	checkExpand(len(y), ldy, len(z), ldz, len(b), ldb, m, n, r)
	if r == 0 {
		return
	}
	for i := range m {
		for j := range n {
			y[i*ldy+j] += dotF32(z[i*ldz:][:r], b[j*ldb:])
		}
	}
}

func expandNTBF16(y []float32, ldy int, z []float32, ldz int, b []uint16, ldb int, m, n, r int) {
	checkExpand(len(y), ldy, len(z), ldz, len(b), ldb, m, n, r)
	if r == 0 {
		return
	}
	for i := range m {
		for j := range n {
			y[i*ldy+j] += dotBF16(z[i*ldz:][:r], b[j*ldb:])
		}
	}
}

func attnScoresF32(scores []float32, lds int, q []float32, ldq int, k []float32, ldk int, g, n, d int, scale float32) {
	dotNTF32(scores, lds, q, ldq, k, ldk, g, n, d)
	for i := range g {
		scaleBy(scores[i*lds:][:n], scale)
	}
}

func attnScoresBF16(scores []float32, lds int, q []float32, ldq int, k []uint16, ldk int, g, n, d int, scale float32) {
	dotNTBF16(scores, lds, q, ldq, k, ldk, g, n, d)
	for i := range g {
		scaleBy(scores[i*lds:][:n], scale)
	}
}

func attnCombineF32(o []float32, ldo int, p []float32, ldp int, v []float32, ldv int, g, n, d int) {
	dotNNF32(o, ldo, p, ldp, v, ldv, g, n, d, true)
}

func attnCombineBF16(o []float32, ldo int, p []float32, ldp int, v []uint16, ldv int, g, n, d int) {
	dotNNBF16(o, ldo, p, ldp, v, ldv, g, n, d, true)
}
