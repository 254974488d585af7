package main

import "fmt"

// zero clears a register.
func (o *out) zero(v isa, r int) {
	if v.name == "512" {
		o.f("VPXORQ Z%d, Z%d, Z%d", r, r, r)
	} else {
		o.f("VXORPS Y%d, Y%d, Y%d", r, r, r)
	}
}

// fold16 adds the lanes of 16 registers in the fixed order by shuffles; the sum of in[q] ends in lane q of the first.
// in[q] < 0 stands for nothing. t1 and t2 are spare.
func (o *out) fold16(in [16]int, t1, t2 int) int {
	spare := in[0]
	get := func(q int) int {
		if in[q] < 0 {
			return spare
		}
		return in[q]
	}
	step := func(op, imm1, op2, imm2 string, a, b int) int {
		o.f("%s %sZ%d, Z%d, Z%d", op, imm1, b, a, t1)
		o.f("%s %sZ%d, Z%d, Z%d", op2, imm2, b, a, t2)
		o.f("VADDPS Z%d, Z%d, Z%d", t2, t1, a)
		return a
	}
	var quad [4]int
	for p := range 4 {
		quad[p] = -1
		if in[p] < 0 {
			continue
		}
		ab := step("VSHUFF32X4", "$0x44, ", "VSHUFF32X4", "$0xEE, ", in[p], get(4+p))
		cd := ab
		if in[8+p] >= 0 {
			cd = step("VSHUFF32X4", "$0x44, ", "VSHUFF32X4", "$0xEE, ", in[8+p], get(12+p))
		} else if in[12+p] >= 0 {
			panic("fold16")
		}
		quad[p] = step("VSHUFF32X4", "$0x88, ", "VSHUFF32X4", "$0xDD, ", ab, cd)
	}
	for p := range quad {
		if quad[p] < 0 {
			quad[p] = quad[0]
		}
	}
	e := step("VUNPCKLPD", "", "VUNPCKHPD", "", quad[0], quad[1])
	f := e
	if in[2] >= 0 {
		f = step("VUNPCKLPD", "", "VUNPCKHPD", "", quad[2], quad[3])
	}
	return step("VSHUFPS", "$0x88, ", "VSHUFPS", "$0xDD, ", e, f)
}

// ntSum512 folds the accumulators and stores the tile at (CX), row stride SI, adding what is there if the flags say
// not equal. It leaves CX behind the tile's last row.
func (o *out) ntSum512(mr, nr int) {
	t1, t2 := 31, 30
	if mr*nr > 30 {
		panic("ntSum512")
	}
	var folded []int
	per := 2 // rows a fold
	switch {
	case nr == 16:
		per = 1
	case nr < 4 && mr > 4:
		per = 4
	}
	for i := 0; i < mr; i += per {
		var in [16]int
		for q := range in {
			r, j := i+q*per/16, q%(16/per)
			in[q] = -1
			if r < mr && j < nr {
				in[q] = r*nr + j
			}
		}
		folded = append(folded, o.fold16(in, t1, t2))
	}
	reg := "Y"
	if nr == 16 {
		reg = "Z"
	}
	if per == 4 {
		reg = "X"
	}
	var rows []string
	spare := 29
	for i := range mr {
		z := folded[i/per]
		switch {
		case per == 4 && i%per > 0:
			o.f("VEXTRACTF32X4 $%d, Z%d, X%d", i%per, z, spare)
			z, spare = spare, spare-1
		case per == 2 && i%per == 1:
			o.f("VEXTRACTF64X4 $1, Z%d, Y%d", z, spare)
			z, spare = spare, spare-1
		}
		rows = append(rows, fmt.Sprintf("%s%d", reg, z))
	}
	o.f("JEQ store")
	for i, r := range rows {
		o.f("VMOVUPS.Z (CX), K2, %s31", reg)
		o.f("VADDPS %s31, %s, %s", reg, r, r)
		if i < mr-1 {
			o.f("ADDQ SI, CX")
		}
	}
	o.f("MOVQ %d(SP), CX", lY)
	o.label("store")
	for _, r := range rows {
		o.f("VMOVUPS %s, K2, (CX)", r)
		o.f("ADDQ SI, CX")
	}
}

func (o *out) ntSum256(mr, nr int, acc func(i, j, h int) int) {
	for i := range mr {
		for j := range nr {
			a, b := acc(i, j, 0), acc(i, j, 1)
			o.f("VADDPS Y%d, Y%d, Y%d", b, a, a)
			o.f("VEXTRACTF128 $1, Y%d, X%d", a, b)
			o.f("VADDPS X%d, X%d, X%d", b, a, a)
			o.f("VPERMILPS $0x0E, X%d, X%d", a, b)
			o.f("VADDPS X%d, X%d, X%d", b, a, a)
			o.f("VPERMILPS $1, X%d, X%d", a, b)
			o.f("VADDSS X%d, X%d, X%d", b, a, a)
		}
	}
	o.f("JEQ store")
	for i := range mr {
		for j := range nr {
			o.f("VADDSS %d(CX), X%d, X%d", 4*j, acc(i, j, 0), acc(i, j, 0))
		}
		if i < mr-1 {
			o.f("ADDQ SI, CX")
		}
	}
	o.f("MOVQ %d(SP), CX", lY)
	o.label("store")
	for i := range mr {
		for j := range nr {
			o.f("VMOVSS X%d, %d(CX)", acc(i, j, 0), 4*j)
		}
		o.f("ADDQ SI, CX")
	}
}
