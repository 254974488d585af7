package main

import "fmt"

// Offsets in nnArgs.
const (
	nnC, nnA, nnW, nnS                   = 0, 8, 16, 24
	nnLdc, nnARow, nnAStep, nnLdw, nnLds = 32, 40, 48, 56, 64
	nnMT, nnN, nnMask, nnAdd             = 72, 80, 88, 96
	nlM, nlA, nlC                        = 0, 8, 16
)

// nnTile emits one DotNN kernel: c[mr rows, nv vectors] (+)= Σ a[row, step]·w[step, vectors], step ascending, in a loop
// over mt tiles of rows. nv = 0 is one scalar column.
func (o *out) nnTile(v isa, e element, mr, nv int) {
	o.fn(fmt.Sprintf("c (+)= a·w for %d rows and %d vectors of columns", mr, nv),
		fmt.Sprintf("nn%s%s_%dx%d", v.name, e.name, mr, nv), "(p *nnArgs)", 24, 8)
	scalar := nv == 0
	nv = max(nv, 1)
	reg, fma, width := v.r, "VFMADD231PS", v.lanes
	if scalar {
		reg, fma, width = func(n int) string { return fmt.Sprintf("X%d", n) }, "VFMADD231SS", 1
	}
	masked := v.name == "512" && !scalar
	aRow := [4]string{"R8", "R9", "R10", "R11"}
	ar := mr * nv
	wr := func(i int) int { return ar + mr + i%min(4, 32-ar-mr) }
	if v.name == "256" {
		wr = func(i int) int { return ar + mr + i%2 }
	}
	mask := func(i int) string {
		if masked && i == nv-1 {
			return "K1"
		}
		return ""
	}
	o.f("MOVQ p+0(FP), DI")
	o.f("MOVQ %d(DI), R8", nnARow)
	o.multiples(mr, aRow)
	o.f("MOVQ %d(DI), R12", nnAStep)
	o.f("MOVQ %d(DI), R13", nnLdw)
	o.f("MOVQ %d(DI), R15", nnLds)
	if masked {
		o.f("MOVQ %d(DI), AX", nnMask)
		o.f("KMOVW AX, K1")
	}
	for _, c := range [][2]int{{nnMT, nlM}, {nnA, nlA}, {nnC, nlC}} {
		o.f("MOVQ %d(DI), AX", c[0])
		o.f("MOVQ AX, %d(SP)", c[1])
	}
	o.label("mtile")
	move := func(load bool) {
		o.f("MOVQ %d(SP), CX", nlC)
		for i := range mr {
			for c := range nv {
				r, at := reg(i*nv+c), fmt.Sprintf("%d(CX)", c*width*4)
				switch {
				case scalar && load:
					o.f("VMOVSS %s, %s", at, r)
				case scalar:
					o.f("VMOVSS %s, %s", r, at)
				case load && mask(c) != "":
					o.f("VMOVUPS.Z %s, K1, %s", at, r)
				case load:
					o.f("VMOVUPS %s, %s", at, r)
				case mask(c) != "":
					o.f("VMOVUPS %s, K1, %s", r, at)
				default:
					o.f("VMOVUPS %s, %s", r, at)
				}
			}
			o.f("ADDQ %d(DI), CX", nnLdc)
		}
	}
	o.f("CMPQ %d(DI), $0", nnAdd)
	o.f("JNE old")
	for r := range mr * nv {
		o.zero(v, r)
	}
	o.f("JMP begin")
	o.label("old")
	move(true)
	o.label("begin")
	o.f("MOVQ %d(SP), SI", nlA)
	o.f("MOVQ %d(DI), DX", nnW)
	o.f("MOVQ %d(DI), AX", nnS)
	o.f("MOVQ %d(DI), BX", nnN)
	o.f("TESTQ BX, BX")
	o.f("JEQ done")
	o.label("loop")
	for i := range mr {
		if scalar {
			o.f("VMOVSS %s, %s", row(0, i, "SI", aRow), reg(ar+i))
		} else {
			o.f("VBROADCASTSS %s, %s", row(0, i, "SI", aRow), reg(ar+i))
		}
	}
	for c := range nv {
		w := wr(c)
		if scalar {
			o.loadScalar(e, w)
		} else {
			o.load(v, e, fmt.Sprintf("%d(DX)", c*width*e.size), fmt.Sprintf("%d(AX)", c*width/32*4), w, 15, mask(c))
		}
		for i := range mr {
			o.f("%s %s, %s, %s", fma, reg(w), reg(ar+i), reg(i*nv+c))
		}
	}
	o.f("ADDQ R12, SI")
	o.f("ADDQ R13, DX")
	o.f("ADDQ R15, AX")
	o.f("DECQ BX")
	o.f("JNE loop")
	o.label("done")
	move(false)
	o.f("MOVQ CX, %d(SP)", nlC)
	o.f("IMUL3Q $%d, R8, CX", mr)
	o.f("ADDQ CX, %d(SP)", nlA)
	o.f("DECQ %d(SP)", nlM)
	o.f("JNE mtile")
	o.f("VZEROUPPER")
	o.f("RET")
}

func (o *out) loadScalar(e element, w int) {
	switch e.name {
	case "F32":
		o.f("VMOVSS (DX), X%d", w)
	case "BF16":
		o.f("MOVWLZX (DX), CX")
		o.f("SHLL $16, CX")
		o.f("VMOVD CX, X%d", w)
	case "Int8":
		o.f("MOVBLSX (DX), CX")
		o.f("VMOVD CX, X%d", w)
		o.f("VCVTDQ2PS X%d, X%d", w, w)
		o.f("VMULSS (AX), X%d, X%d", w, w)
	}
}

// The tiles of DotNN: rows of c, vectors of columns; 0 vectors is one scalar column.
var (
	nnShapes512 = [][2]int{{4, 6}, {2, 6}, {1, 6}, {8, 2}, {4, 2}, {2, 2}, {1, 2}, {8, 1}, {1, 1}}
	nnShapes256 = [][2]int{{2, 4}, {1, 4}, {4, 1}, {1, 1}, {1, 0}}
)

func dotNN(o *out, v isa) {
	shapes := nnShapes512
	if v.name == "256" {
		shapes = nnShapes256
	}
	for _, e := range elements {
		for _, t := range shapes {
			o.nnTile(v, e, t[0], t[1])
		}
	}
}
