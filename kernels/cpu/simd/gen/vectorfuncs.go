package main

import "fmt"

// three are the pointer registers of most functions.
var regs = []string{"DI", "SI", "DX", "R8", "R9"}

func vectors(o *out, v isa) {
	g := gen{o, v}
	g.constants()
	g.exps()
	g.elementwise()
	g.silus()
	g.adamW()
	g.search()
	g.ceilings()
}

// exps emits the exponentials with a running sum in 16 lanes at lanes, and the running maximum.
func (g gen) exps() {
	halves := 16 / g.v.lanes
	loadLanes := func() {
		g.op("VBROADCASTSS", "(DX)", 7)
		for h := range halves {
			g.op("VMOVUPS", fmt.Sprintf("%d(SI)", h*4*g.v.lanes), 8+h)
		}
	}
	storeLanes := func() {
		for h := range halves {
			g.op("VMOVUPS", 8+h, fmt.Sprintf("%d(SI)", h*4*g.v.lanes))
		}
	}
	for _, store := range []bool{true, false} {
		name, doc := "expSum", "lanes[j] += exp(x[i] − *max) for i ≡ j (mod 16)"
		if store {
			name, doc = "softmax", "x[i] = exp(x[i] − *max); lanes[j] += x[i] for i ≡ j (mod 16)"
		}
		g.loop(doc, name, "(x, lanes, max *float32, n int)", regs[:3], []int{4, 0, 0}, loadLanes, func(h int, at func(int) string) {
			g.op("VMOVUPS", at(0), 0)
			g.op("VSUBPS", 7, 0, 0)
			g.exp(0, 1, 2, 3)
			if store {
				g.op("VMOVUPS", 0, at(0))
			}
			g.op("VADDPS", 0, 8+h, 8+h)
		}, storeLanes)
	}
	g.loop("lanes[j] = max(lanes[j], x[i]) for i ≡ j (mod 16); NaN loses", "maxLanes", "(x, lanes *float32, n int)", regs[:2], []int{4, 0},
		func() {
			for h := range halves {
				g.op("VMOVUPS", fmt.Sprintf("%d(SI)", h*4*g.v.lanes), 8+h)
			}
		}, func(h int, at func(int) string) {
			g.op("VMOVUPS", at(0), 0)
			g.op("VMAXPS", 8+h, 0, 8+h)
		}, storeLanes)
}

func (g gen) elementwise() {
	g.loop("dst[i] = (x[i]·*s)·w[i]", "scaleMul", "(dst, x, w, s *float32, n int)", regs[:4], []int{4, 4, 4, 0},
		func() { g.op("VBROADCASTSS", "(R8)", 7) },
		func(h int, at func(int) string) {
			g.op("VMULPS", at(1), 7, 0)
			g.op("VMULPS", at(2), 0, 0)
			g.op("VMOVUPS", 0, at(0))
		}, nil)
	g.loop("dst[i] += x[i]", "add", "(dst, x *float32, n int)", regs[:2], []int{4, 4}, nil,
		func(h int, at func(int) string) {
			g.op("VMOVUPS", at(0), 0)
			g.op("VADDPS", at(1), 0, 0)
			g.op("VMOVUPS", 0, at(0))
		}, nil)
	g.loop("x[i] *= *s", "scale", "(x, s *float32, n int)", regs[:2], []int{4, 0},
		func() { g.op("VBROADCASTSS", "(SI)", 7) },
		func(h int, at func(int) string) {
			g.op("VMULPS", at(0), 7, 0)
			g.op("VMOVUPS", 0, at(0))
		}, nil)
	g.loop("x[i] = float32(bfloat16(x[i]))", "roundBF16", "(x *float32, n int)", regs[:1], []int{4}, nil,
		func(h int, at func(int) string) {
			g.op("VMOVUPS", at(0), 0)
			g.round(0, 1, 2)
			g.op("VPSLLD", "$16", 0, 0)
			g.op("VMOVUPS", 0, at(0))
		}, nil)
	g.loop("dst[i] = bfloat16(x[i])", "narrow", "(dst *uint16, x *float32, n int)", regs[:2], []int{2, 4}, nil,
		func(h int, at func(int) string) {
			g.op("VMOVUPS", at(1), 0)
			g.round(0, 1, 2)
			if g.v.name == "512" {
				g.f("VPMOVDW Z0, (DI)")
				return
			}
			g.f("VEXTRACTI128 $1, Y0, X1")
			g.f("VPACKUSDW X1, X0, X0")
			g.f("VMOVDQU X0, %s", at(0))
		}, nil)
	g.loop("dst[i] = float32(x[i])", "widen", "(dst *float32, x *uint16, n int)", regs[:2], []int{4, 2}, nil,
		func(h int, at func(int) string) {
			g.op("VPMOVZXWD", at(1), 0)
			g.op("VPSLLD", "$16", 0, 0)
			g.op("VMOVUPS", 0, at(0))
		}, nil)
	for _, inverse := range []bool{false, true} {
		name, doc, a, b := "rope", "(a, b) = (a·cos − b·sin, b·cos + a·sin)", "VFNMADD231PS", "VFMADD231PS"
		if inverse {
			name, doc, a, b = "ropeInverse", "(a, b) = (a·cos + b·sin, b·cos − a·sin)", b, a
		}
		g.loop(doc, name, "(a, b, cos, sin *float32, n int)", regs[:4], []int{4, 4, 4, 4}, nil,
			func(h int, at func(int) string) {
				for r := range 4 {
					g.op("VMOVUPS", at(r), r)
				}
				g.op("VMULPS", 0, 2, 4)
				g.op("VMULPS", 1, 2, 5)
				g.op(a, 1, 3, 4)
				g.op(b, 0, 3, 5)
				g.op("VMOVUPS", 4, at(0))
				g.op("VMOVUPS", 5, at(1))
			}, nil)
	}
}

func (g gen) silus() {
	g.loop("dst[i] = gate[i]·σ(gate[i])·up[i]", "siluMul", "(dst, gate, up *float32, n int)", regs[:3], []int{4, 4, 4}, nil,
		func(h int, at func(int) string) {
			g.op("VMOVUPS", at(1), 0)
			g.sigmoid(0, 1, 2, 3, 4)
			g.op("VMULPS", 0, 1, 1)
			g.op("VMULPS", at(2), 1, 1)
			g.op("VMOVUPS", 1, at(0))
		}, nil)
	g.loop("dgate[i] = da·up·σ·(1 + gate·(1−σ)); dup[i] = da·gate·σ", "siluMulBackward", "(dgate, dup, da, gate, up *float32, n int)", regs[:5],
		[]int{4, 4, 4, 4, 4}, nil,
		func(h int, at func(int) string) {
			g.op("VMOVUPS", at(3), 0)
			g.sigmoid(0, 1, 2, 3, 4)
			g.op("VMULPS", at(2), 1, 5) // da·σ
			g.op("VMOVUPS", g.c("one"), 6)
			g.op("VSUBPS", 1, 6, 2)      // 1−σ
			g.op("VFMADD213PS", 6, 0, 2) // gate·(1−σ)+1
			g.op("VMULPS", at(4), 5, 3)
			g.op("VMULPS", 2, 3, 3)
			g.op("VMULPS", 0, 5, 5)
			g.op("VMOVUPS", 3, at(0))
			g.op("VMOVUPS", 5, at(1))
		}, nil)
}

// adamW takes beta1, 1−beta1, beta2, 1−beta2, bias1, bias2, eps, 1−lr·decay, lr at p.
func (g gen) adamW() {
	g.loop("AdamW with beta1, 1−beta1, beta2, 1−beta2, bias1, bias2, eps, 1−lr·decay, lr at p", "adamW", "(w, m, v, grad, p *float32, n int)", regs[:5],
		[]int{4, 4, 4, 4, 0}, func() {
			for i := range 9 {
				g.op("VBROADCASTSS", fmt.Sprintf("%d(R9)", 4*i), 4+i)
			}
		}, func(h int, at func(int) string) {
			g.op("VMOVUPS", at(3), 0)
			g.op("VMULPS", 5, 0, 1)
			g.op("VMOVUPS", at(1), 2)
			g.op("VFMADD231PS", 4, 2, 1)
			g.op("VMOVUPS", 1, at(1)) // m
			g.op("VMULPS", 0, 0, 0)
			g.op("VMULPS", 7, 0, 0)
			g.op("VMOVUPS", at(2), 2)
			g.op("VFMADD231PS", 6, 2, 0)
			g.op("VMOVUPS", 0, at(2)) // v
			g.op("VDIVPS", 8, 1, 1)
			g.op("VDIVPS", 9, 0, 0)
			g.op("VSQRTPS", 0, 0)
			g.op("VADDPS", 10, 0, 0)
			g.op("VDIVPS", 0, 1, 1)
			g.op("VMULPS", 12, 1, 1)
			g.op("VMOVUPS", at(0), 2)
			g.op("VFMSUB213PS", 1, 11, 2) // w·(1−lr·decay) − step
			g.op("VMOVUPS", 2, at(0))
		}, nil)
}

// search finds the first run of 16 that holds a value.
func (g gen) search() {
	g.fn("the index of the first 16 elements that hold *v, or n", "find"+g.v.name, "(x, v *float32, n int) int", 0, 32)
	g.f("MOVQ x+0(FP), DI")
	g.f("MOVQ v+8(FP), SI")
	g.f("MOVQ n+16(FP), CX")
	g.op("VBROADCASTSS", "(SI)", 7)
	g.f("XORQ AX, AX")
	g.label("loop")
	if g.v.name == "512" {
		g.f("VCMPPS $0, (DI)(AX*4), Z7, K1")
		g.f("KORTESTW K1, K1")
	} else {
		g.f("VCMPPS $0, (DI)(AX*4), Y7, Y0")
		g.f("VCMPPS $0, 32(DI)(AX*4), Y7, Y1")
		g.f("VPOR Y0, Y1, Y1")
		g.f("VPTEST Y1, Y1")
	}
	g.f("JNE found")
	g.f("ADDQ $16, AX")
	g.f("CMPQ AX, CX")
	g.f("JLT loop")
	g.label("found")
	g.f("MOVQ AX, ret+24(FP)")
	g.f("VZEROUPPER")
	g.f("RET")
}

func (g gen) ceilings() {
	step := 4 * g.v.lanes
	g.fn("the xor of n bytes, n a multiple of 64", "readLoop"+g.v.name, "(buf *byte, n int) uint64", 0, 24)
	g.f("MOVQ buf+0(FP), DI")
	g.f("MOVQ n+8(FP), CX")
	for r := range 4 {
		g.bitwiseQ("VPXOR", r, r, r)
	}
	g.f("SUBQ $512, CX")
	g.f("JLT lines")
	g.label("loop")
	for i := 0; i < 512/step; i++ {
		g.bitwiseQ("VPXOR", fmt.Sprintf("%d(DI)", i*step), i%4, i%4)
	}
	g.f("PREFETCHT0 2048(DI)")
	g.f("ADDQ $512, DI")
	g.f("SUBQ $512, CX")
	g.f("JGE loop")
	g.label("lines")
	g.f("ADDQ $512, CX")
	g.f("JEQ sum")
	g.label("line")
	for i := 0; i < 64/step; i++ {
		g.bitwiseQ("VPXOR", fmt.Sprintf("%d(DI)", i*step), i%4, i%4)
	}
	g.f("ADDQ $64, DI")
	g.f("SUBQ $64, CX")
	g.f("JNE line")
	g.label("sum")
	for r := 1; r < 4; r++ {
		g.bitwiseQ("VPXOR", r, 0, 0)
	}
	if g.v.name == "512" {
		g.f("VEXTRACTI64X4 $1, Z0, Y1")
		g.f("VPXOR Y1, Y0, Y0")
	}
	g.f("VEXTRACTI128 $1, Y0, X1")
	g.f("VPXOR X1, X0, X0")
	g.f("VPSRLDQ $8, X0, X1")
	g.f("VPXOR X1, X0, X0")
	g.f("VMOVQ X0, AX")
	g.f("MOVQ AX, ret+16(FP)")
	g.f("VZEROUPPER")
	g.f("RET")

	g.fn("n rounds of 12 independent fused multiply-adds", "peakFMA"+g.v.name, "(n int)", 0, 8)
	g.f("MOVQ n+0(FP), CX")
	for r := range 14 {
		g.bitwiseQ("VPXOR", r, r, r)
	}
	g.f("PCALIGN $64")
	g.label("loop")
	for r := range 12 {
		g.op("VFMADD231PS", 13, 12, r)
	}
	g.f("DECQ CX")
	g.f("JNE loop")
	g.f("VZEROUPPER")
	g.f("RET")
}

func (g gen) bitwiseQ(name string, args ...any) {
	if g.v.name == "512" {
		name += "Q"
	}
	g.op(name, args...)
}
