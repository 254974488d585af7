package main

import "fmt"

// Offsets in ntArgs.
const (
	ntY, ntX, ntW, ntS              = 0, 8, 16, 24
	ntLdy, ntLdx, ntLdw, ntLds      = 32, 40, 48, 56
	ntMT, ntNT, ntK, ntAdd          = 64, 72, 80, 88
	lM, lN, lX, lW, lY, lS, lY0, lT = 0, 8, 16, 24, 32, 40, 48, 56 // locals on the stack
)

// prefetchAhead is how many bytes behind the current tile of weights are fetched ahead of use, as if rows of weights
// were contiguous. Only the first tile of activations does so: the others find the weights in cache.
const prefetchAhead = 8 << 10

// ntTile emits one DotNT kernel: an outer loop over nt tiles of nr weight rows, an inner one over mt tiles of mr
// activation rows, lanes along k.
//
// Registers: SI x cursor, DX w cursor, R8/R9 1 and 3 ldx, R10–R13 1, 3, 5, 7 ldw, AX scale cursor, R15 prefetch or
// rows 8 and up, BX, DI (and R8, R9 or R13) multiples of lds, CX steps. Tiles of more than 4 rows of x have at most 3 of w, and
// R12/R13 are 5 and 7 ldx.
func (o *out) ntTile(v isa, e element, mr, nr int) {
	name := fmt.Sprintf("nt%s%s_%dx%d", v.name, e.name, mr, nr)
	frame := 64
	if v.name == "256" {
		frame = lT + 64*(mr+nr)
	}
	o.fn(fmt.Sprintf("y = x·wᵀ in tiles of %d rows of x and %d of w", mr, nr), name, "(p *ntArgs)", frame, 8)
	ldx := [4]string{"R8", "R9"}
	ldw := [4]string{"R10", "R11", "R12", "R13"}
	tall := mr > 4
	if tall { // at most 3 rows of w leave these free
		ldx = [4]string{"R8", "R9", "R12", "R13"}
	}
	lds := [4]string{"BX", "DI", "R13"}
	if nr > 6 {
		lds = [4]string{"BX", "DI", "R8", "R9"}
	}
	int8 := e.name == "Int8"
	stream := nr <= 8
	x := func(i, off int) string { return row(off*4, i, "SI", ldx) }
	w := func(j, off int) string {
		if j >= 8 {
			return row(off*e.size, j-8, "R15", ldw)
		}
		return row(off*e.size, j, "DX", ldw)
	}
	halves := 16 / v.lanes
	acc := func(i, j, h int) int { return (i*nr+j)*halves + h }
	xr := mr * nr * halves
	wr := func(j int) int { return xr + mr + j%min(4, 32-xr-mr) }
	if tall {
		wr = func(j int) int { return xr + j }
	}
	scaleTmp := 15
	if v.name == "256" {
		wr = func(int) int { return xr + mr }
	}

	o.f("MOVQ p+0(FP), DI")
	for _, c := range [][2]int{{ntX, lX}, {ntW, lW}, {ntY, lY0}, {ntS, lS}, {ntNT, lN}} {
		o.f("MOVQ %d(DI), AX", c[0])
		o.f("MOVQ AX, %d(SP)", c[1])
	}
	if v.name == "512" {
		o.f("MOVQ %d(DI), CX", ntK)
		o.f("ANDQ $15, CX")
		o.f("MOVL $1, AX")
		o.f("SHLL CX, AX")
		o.f("DECL AX")
		o.f("KMOVW AX, K1")
		o.f("MOVL $%d, AX", 1<<nr-1)
		o.f("KMOVW AX, K2")
	}
	if mr > 1 {
		o.f("MOVQ %d(DI), R8", ntLdx)
		o.multiples(mr, ldx)
	}
	o.f("MOVQ %d(DI), R10", ntLdw)
	o.multiples(min(nr, 8), ldw)
	if int8 {
		o.f("MOVQ %d(DI), BX", ntLds)
		o.multiples(nr, lds)
	}

	o.label("ntile")
	o.f("MOVQ p+0(FP), AX")
	o.f("MOVQ %d(AX), CX", ntMT)
	o.f("MOVQ CX, %d(SP)", lM)
	o.f("MOVQ %d(AX), SI", ntX)
	o.f("MOVQ SI, %d(SP)", lX)
	o.f("MOVQ %d(SP), CX", lY0)
	o.f("MOVQ CX, %d(SP)", lY)

	o.label("mtile")
	for r := range mr * nr * halves {
		o.zero(v, r)
	}
	o.f("MOVQ p+0(FP), AX")
	o.f("MOVQ %d(AX), CX", ntK)
	o.f("MOVQ %d(SP), SI", lX)
	o.f("MOVQ %d(SP), DX", lW)
	if nr > 8 {
		o.f("LEAQ (DX)(R10*8), R15")
	} else if stream {
		o.f("IMUL3Q $%d, R10, R15", nr)
		o.f("LEAQ %d(DX)(R15*1), R15", prefetchAhead)
		if mr > 1 {
			o.f("CMPQ SI, %d(AX)", ntX)
			o.f("CMOVQNE DX, R15")
		}
	}
	if int8 {
		o.f("MOVQ %d(SP), AX", lS)
	}
	chunk := func(off int, x, w func(r, off int) string, mask string) {
		if tall { // weights widened once for all rows, which pass through two registers or more
			for j := range nr {
				o.load(v, e, w(j, off), row(0, j, "AX", lds), wr(j), scaleTmp, mask)
			}
			for i := range mr {
				r := xr + nr + i%min(5, 32-xr-nr)
				o.load(v, elements[0], x(i, off), "", r, 0, mask)
				for j := range nr {
					o.f("VFMADD231PS %s, %s, %s", v.r(wr(j)), v.r(r), v.r(acc(i, j, 0)))
				}
			}
			return
		}
		for h := range halves {
			for i := range mr {
				o.load(v, elements[0], x(i, off+8*h), "", xr+i, 0, mask)
			}
			for j := range nr {
				o.load(v, e, w(j, off+8*h), row(0, min(j, 7), "AX", lds), wr(j), scaleTmp, mask)
				for i := range mr {
					o.f("VFMADD231PS %s, %s, %s", v.r(wr(j)), v.r(xr+i), v.r(acc(i, j, h)))
				}
			}
		}
	}
	o.f("SUBQ $32, CX")
	o.f("JLT half")
	o.label("loop")
	if stream {
		for at := 0; at < 32*e.size*nr; at += 64 {
			o.f("PREFETCHT0 %d(R15)", at)
		}
		o.f("ADDQ $%d, R15", 32*e.size*nr)
	}
	chunk(0, x, w, "")
	chunk(16, x, w, "")
	o.f("ADDQ $128, SI")
	o.f("ADDQ $%d, DX", 32*e.size)
	if nr > 8 {
		o.f("ADDQ $%d, R15", 32*e.size)
	}
	if int8 {
		o.f("ADDQ $4, AX")
	}
	o.f("SUBQ $32, CX")
	o.f("JGE loop")
	o.label("half")
	o.f("ADDQ $16, CX")
	o.f("JLT tail")
	if nr == 16 {
		for at := 0; at < 16*e.size*nr; at += 64 {
			o.f("PREFETCHT0 %d(DX)", prefetchAhead+at)
		}
	}
	chunk(0, x, w, "")
	o.f("ADDQ $64, SI")
	o.f("ADDQ $%d, DX", 16*e.size)
	if nr > 8 {
		o.f("ADDQ $%d, R15", 16*e.size)
	}
	o.f("SUBQ $16, CX")
	o.label("tail")
	o.f("ADDQ $16, CX")
	o.f("JEQ sum")
	if v.name == "512" {
		chunk(0, x, w, "K1")
	} else {
		o.padTails(e, mr, nr, x, w)
		chunk(0, func(i, off int) string { return fmt.Sprintf("%d(SP)", lT+64*i+4*off) },
			func(j, off int) string { return fmt.Sprintf("%d(SP)", lT+64*(mr+j)+e.size*off) }, "")
	}
	o.label("sum")
	o.f("MOVQ p+0(FP), AX")
	o.f("MOVQ %d(SP), CX", lY)
	o.f("MOVQ %d(AX), SI", ntLdy)
	o.f("CMPQ %d(AX), $0", ntAdd)
	o.f("MOVQ SI, DX") // keeps the flags
	if v.name == "512" {
		o.ntSum512(mr, nr)
	} else {
		o.ntSum256(mr, nr, acc)
	}
	o.f("MOVQ CX, %d(SP)", lY)
	o.f("MOVQ %d(SP), SI", lX)
	o.f("MOVQ %d(AX), DX", ntLdx)
	o.f("IMULQ $%d, DX", mr)
	o.f("ADDQ DX, SI")
	o.f("MOVQ SI, %d(SP)", lX)
	o.f("DECQ %d(SP)", lM)
	o.f("JNE mtile")

	o.f("IMUL3Q $%d, R10, DX", nr)
	o.f("ADDQ DX, %d(SP)", lW)
	o.f("ADDQ $%d, %d(SP)", nr*4, lY0)
	if int8 {
		o.f("IMUL3Q $%d, BX, DX", nr)
		o.f("ADDQ DX, %d(SP)", lS)
	}
	o.f("DECQ %d(SP)", lN)
	o.f("JNE ntile")
	o.f("VZEROUPPER")
	o.f("RET")
}

// padTails copies the last CX < 16 elements of every row into zeroed 64-byte buffers on the stack, by way of R14 and
// R15. AVX2 has no masked load of narrow elements.
func (o *out) padTails(e element, mr, nr int, x, w func(r, off int) string) {
	o.f("VXORPS X15, X15, X15")
	copyTail := func(n, size int, src string, dst int) {
		for b := 0; b < 16*size; b += 16 {
			o.f("VMOVUPS X15, %d(SP)", dst+b)
		}
		mov := map[int]string{4: "MOVL", 2: "MOVW", 1: "MOVB"}[size]
		o.f("LEAQ %s, R15", src)
		o.f("LEAQ %d(SP), SI", dst)
		o.f("MOVQ CX, R14")
		o.labels++
		l := fmt.Sprintf("copy%d", n)
		o.label(l)
		o.f("%s (R15), DX", mov)
		o.f("%s DX, (SI)", mov)
		o.f("ADDQ $%d, R15", size)
		o.f("ADDQ $%d, SI", size)
		o.f("DECQ R14")
		o.f("JNE %s", l)
	}
	// SI and DX are cursors: the addresses come first.
	for j := range nr {
		o.f("LEAQ %s, R15", w(j, 0))
		o.f("MOVQ R15, %d(SP)", lT+64*(mr+j))
	}
	for i := range mr {
		o.f("LEAQ %s, R15", x(i, 0))
		o.f("MOVQ R15, %d(SP)", lT+64*i)
	}
	for r := range mr + nr {
		size := e.size
		if r < mr {
			size = 4
		}
		o.f("MOVQ %d(SP), R15", lT+64*r)
		copyTail(r, size, "(R15)", lT+64*r)
	}
}

// The tiles of DotNT: rows of x, rows of w.
var (
	ntShapes512 = [][2]int{{1, 16}, {1, 8}, {1, 4}, {1, 2}, {1, 1}, {2, 8}, {2, 4}, {2, 1}, {3, 8}, {3, 4}, {3, 1}, {4, 6}, {4, 4}, {4, 2}, {4, 1},
		{6, 3}, {6, 1}, {8, 3}, {8, 1}}
	ntShapes256 = [][2]int{{1, 4}, {1, 1}, {2, 3}, {2, 1}}
)

// fitScales narrows a tile to what the registers for int8 scales allow; no rows of w means no such tile.
func fitScales(v isa, e element, t [2]int) [2]int {
	if e.name != "Int8" || v.name != "512" {
		return t
	}
	if t[1] == 16 {
		t[1] = 0
	}
	if t[0] > 1 {
		t[1] = min(t[1], 6)
	}
	return t
}

// longTiles are the tiles of one long row of activations, which is bound by the stream of weights: the closer to one
// sequential stream the better, as long as the chains of additions are not what it waits for.
func longTiles(v isa, e element) []int {
	switch {
	case v.name == "256":
		return []int{4, 1}
	case e.name == "Int8":
		return []int{4, 2, 1}
	}
	return []int{2, 1}
}

func dotNT512(o *out) {
	for _, e := range elements {
		for _, t := range ntShapes512 {
			if t = fitScales(avx512, e, t); t[1] > 0 {
				o.ntTile(avx512, e, t[0], t[1])
			}
		}
	}
}

func dotNT256(o *out) {
	for _, e := range elements {
		for _, t := range ntShapes256 {
			o.ntTile(avx2, e, t[0], t[1])
		}
	}
}
