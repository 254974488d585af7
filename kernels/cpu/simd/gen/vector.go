package main

import (
	"fmt"
	"math"
	"strings"
)

// Constants lie in memory 16 times over, so that either register width takes them as an operand.
var constants = []struct {
	name string
	bits uint32
}{
	{"log2e", math.Float32bits(math.Log2E)},
	{"ln2hi", math.Float32bits(0.693359375)},
	{"ln2lo", math.Float32bits(-2.12194440e-4)},
	{"expmax", math.Float32bits(89)},
	{"expmin", math.Float32bits(-104)},
	{"p0", math.Float32bits(1.9875691500e-4)},
	{"p1", math.Float32bits(1.3981999507e-3)},
	{"p2", math.Float32bits(8.3334519073e-3)},
	{"p3", math.Float32bits(4.1665795894e-2)},
	{"p4", math.Float32bits(1.6666665459e-1)},
	{"p5", math.Float32bits(5.0000001201e-1)},
	{"one", math.Float32bits(1)},
	{"sign", 1 << 31},
	{"int127", 127},
	{"int1", 1},
	{"half", 0x7fff},
	{"quiet", 0x400000},
}

// gen emits vector code: one body for both widths, run on 16 elements a turn.
type gen struct {
	*out
	v isa
}

func (g gen) op(name string, args ...any) {
	s := name + " "
	for i, a := range args {
		if i > 0 {
			s += ", "
		}
		switch a := a.(type) {
		case int:
			s += g.v.r(a)
		case string:
			s += a
		}
	}
	g.f("%s", s)
}

// c is the address of a constant.
func (g gen) c(name string) string { return fmt.Sprintf("%s%s<>(SB)", name, g.v.name) }

func (g gen) constants() {
	g.comment("Constants, 16 times each.")
	for _, c := range constants {
		name := c.name + g.v.name
		for i := range 16 {
			fmt.Fprintf(&g.text, "DATA %s<>+%d(SB)/4, $0x%08x\n", name, 4*i, c.bits)
		}
		fmt.Fprintf(&g.text, "GLOBL %s<>(SB), RODATA|NOPTR, $64\n", name)
	}
}

func (g gen) bitwise(name string, args ...any) {
	if g.v.name == "512" {
		name += "D"
	}
	g.op(name, args...)
}

// exp replaces register x by exp(x): n = round(x·log2 e), r = x − n·ln 2, a polynomial of degree 7 in r (Cephes), and
// two exact scalings that together are 2ⁿ. Arguments are clamped to where the result is 0 or +Inf. t, u, w are spare.
func (g gen) exp(x, t, u, w int) {
	g.op("VMOVUPS", g.c("expmax"), t)
	g.op("VMINPS", x, t, x) // NaN passes: the second source of Intel's order
	g.op("VMOVUPS", g.c("expmin"), t)
	g.op("VMAXPS", x, t, x)
	g.op("VMULPS", g.c("log2e"), x, t)
	if g.v.name == "512" {
		g.op("VRNDSCALEPS", "$8", t, t)
	} else {
		g.op("VROUNDPS", "$8", t, t)
	}
	g.op("VFNMADD231PS", g.c("ln2hi"), t, x)
	g.op("VFNMADD231PS", g.c("ln2lo"), t, x)
	g.op("VMOVUPS", g.c("p0"), u)
	for _, p := range []string{"p1", "p2", "p3", "p4", "p5"} {
		g.op("VFMADD213PS", g.c(p), x, u)
	}
	g.op("VMULPS", x, x, w)
	g.op("VFMADD213PS", x, w, u) // u·r² + r
	g.op("VADDPS", g.c("one"), u, u)
	g.op("VCVTPS2DQ", t, t)
	g.op("VPSRAD", "$1", t, w)
	g.op("VPSUBD", w, t, t)
	for _, r := range []int{w, t} {
		g.op("VPADDD", g.c("int127"), r, r)
		g.op("VPSLLD", "$23", r, r)
	}
	g.op("VMULPS", w, u, u)
	g.op("VMULPS", t, u, x)
}

// sigmoid sets s = 1/(1+exp(−x)); t, u, w are spare.
func (g gen) sigmoid(x, s, t, u, w int) {
	g.bitwise("VPXOR", g.c("sign"), x, s)
	g.exp(s, t, u, w)
	g.op("VADDPS", g.c("one"), s, s)
	g.op("VMOVUPS", g.c("one"), t)
	g.op("VDIVPS", s, t, s)
}

// round replaces the float32 in x by its bfloat16, in the upper half of each lane and with the lower half cleared only
// by the shift that follows: x ends as the 16-bit number. t and u are spare.
func (g gen) round(x, t, u int) {
	g.op("VPSRLD", "$16", x, t)
	g.bitwise("VPAND", g.c("int1"), t, t)
	g.op("VPADDD", g.c("half"), t, t)
	g.op("VPADDD", x, t, t)
	g.bitwise("VPOR", g.c("quiet"), x, u)
	if g.v.name == "512" {
		g.op("VCMPPS", "$3", x, x, "K3")
		g.op("VMOVDQA32", u, "K3", t)
	} else {
		g.op("VCMPPS", "$3", x, x, x)
		g.op("VBLENDVPS", x, u, t, t)
	}
	g.op("VPSRLD", "$16", t, x)
}

// loop emits a function over n elements, n a multiple of 16. regs names the pointer arguments, in the order of the
// signature, as "reg:size"; n follows them. setup and body come between; body sees the byte offset of its part.
func (g gen) loop(doc, name, signature string, ptrs []string, sizes []int, setup func(), body func(h int, at func(p int) string), done func()) {
	names := argNames(signature)
	g.fn(doc, name+g.v.name, signature, 0, 8*len(names))
	for i, n := range names {
		reg := "CX"
		if i < len(ptrs) {
			reg = ptrs[i]
		}
		g.f("MOVQ %s+%d(FP), %s", n, 8*i, reg)
	}
	if setup != nil {
		setup()
	}
	g.label("loop")
	for h := range 16 / g.v.lanes {
		body(h, func(p int) string { return fmt.Sprintf("%d(%s)", h*g.v.lanes*sizes[p], ptrs[p]) })
	}
	for i, p := range ptrs {
		if sizes[i] > 0 {
			g.f("ADDQ $%d, %s", 16*sizes[i], p)
		}
	}
	g.f("SUBQ $16, CX")
	g.f("JNE loop")
	if done != nil {
		done()
	}
	g.f("VZEROUPPER")
	g.f("RET")
}

// argNames are the names of 8-byte parameters in a Go parameter list.
func argNames(signature string) []string {
	var names []string
	list, _, _ := strings.Cut(strings.TrimPrefix(signature, "("), ")")
	for _, p := range strings.Split(list, ",") {
		names = append(names, strings.Fields(p)[0])
	}
	return names
}
