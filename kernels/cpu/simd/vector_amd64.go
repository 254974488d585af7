//go:build !purego

package simd

import (
	"math"
	"unsafe"
)

// vectorSet holds the vector kernels of one instruction set. They take multiples of 16 elements; tails go through
// buffers of 16.
type vectorSet struct {
	softmax, expSum        func(x, lanes, max *float32, n int)
	maxLanes               func(x, lanes *float32, n int)
	scaleMul               func(dst, x, w, s *float32, n int)
	add, scale             func(a, b *float32, n int)
	roundBF16              func(x *float32, n int)
	narrow                 func(dst *uint16, x *float32, n int)
	widen                  func(dst *float32, x *uint16, n int)
	rope, ropeInverse      func(a, b, cos, sin *float32, n int)
	siluMul                func(dst, gate, up *float32, n int)
	siluMulBackward, adamW func(a, b, c, d, e *float32, n int)
	find                   func(x, v *float32, n int) int
}

// pointers are the arguments of one kernel call.
type pointers [5]*float32

// inRuns calls f on the vectors' first 16·i elements, then on copies of their tails padded with pad. The vectors have
// the length of the first. The first outs of them are written.
func inRuns(outs int, pad float32, f func(p pointers, n int), vectors ...[]float32) {
	n := len(vectors[0])
	whole := n &^ 15
	var p pointers
	if whole > 0 {
		for i, v := range vectors {
			p[i] = unsafe.SliceData(v)
		}
		f(p, whole)
	}
	if whole == n {
		return
	}
	var tail [len(p)][16]float32
	for i, v := range vectors {
		for j := copy(tail[i][:], v[whole:n]); j < 16; j++ {
			tail[i][j] = pad
		}
		p[i] = hide(&tail[i][0])
	}
	f(p, 16)
	for i := range outs {
		copy(vectors[i][whole:n], tail[i][:])
	}
}

var minusInf = float32(math.Inf(-1))

// vectors fills the vector functions of k.
func vectors(k *Kernels, v *vectorSet) {
	k.SoftmaxExp = func(x []float32, max float32) float32 {
		var acc lanes
		inRuns(1, minusInf, func(p pointers, n int) { v.softmax(p[0], hide(&acc[0]), hide(&max), n) }, x)
		return acc.sum()
	}
	maximum := func(x []float32) float32 {
		var acc lanes
		for i := range acc {
			acc[i] = minusInf
		}
		inRuns(0, minusInf, func(p pointers, n int) { v.maxLanes(p[0], hide(&acc[0]), n) }, x)
		best := minusInf
		for _, a := range acc {
			best = max(best, a)
		}
		return best
	}
	k.ExpSumMax = func(x []float32) (float32, float32) {
		best := maximum(x)
		if best == minusInf {
			return best, 0
		}
		var acc lanes
		inRuns(0, minusInf, func(p pointers, n int) { v.expSum(p[0], hide(&acc[0]), hide(&best), n) }, x)
		return best, acc.sum()
	}
	k.ArgMax = func(x []float32) int {
		best := maximum(x)
		if best == minusInf {
			return 0
		}
		at, whole := 0, len(x)&^15
		if whole > 0 {
			at = v.find(unsafe.SliceData(x), hide(&best), whole)
		}
		for x[at] != best {
			at++
		}
		return at
	}
	k.ScaleMul = func(dst, x []float32, s float32, w []float32) {
		atLeast("ScaleMul x", len(x), len(dst))
		atLeast("ScaleMul w", len(w), len(dst))
		inRuns(1, 0, func(p pointers, n int) { v.scaleMul(p[0], p[1], p[2], hide(&s), n) }, dst, x, w)
	}
	k.Add = func(dst, x []float32) {
		atLeast("Add dst", len(dst), len(x))
		inRuns(1, 0, func(p pointers, n int) { v.add(p[0], p[1], n) }, dst[:len(x)], x)
	}
	k.Scale = func(x []float32, s float32) {
		inRuns(1, 0, func(p pointers, n int) { v.scale(p[0], hide(&s), n) }, x)
	}
	k.RoundBF16InPlace = func(x []float32) {
		inRuns(1, 0, func(p pointers, n int) { v.roundBF16(p[0], n) }, x)
	}
	k.SiluMul = func(dst, gate, up []float32) {
		atLeast("SiluMul gate", len(gate), len(dst))
		atLeast("SiluMul up", len(up), len(dst))
		inRuns(1, 0, func(p pointers, n int) { v.siluMul(p[0], p[1], p[2], n) }, dst, gate, up)
	}
	k.SiluMulBackward = func(dgate, dup, da, gate, up []float32) {
		n := len(da)
		atLeast("SiluMulBackward dgate", len(dgate), n)
		atLeast("SiluMulBackward dup", len(dup), n)
		atLeast("SiluMulBackward gate", len(gate), n)
		atLeast("SiluMulBackward up", len(up), n)
		inRuns(2, 0, func(p pointers, n int) { v.siluMulBackward(p[0], p[1], p[2], p[3], p[4], n) }, dgate[:n], dup, da, gate, up)
	}
	rotation := func(rotate func(a, b, cos, sin *float32, n int)) func(x, cos, sin []float32) {
		return func(x, cos, sin []float32) {
			h := len(x) / 2
			atLeast("Rope cos", len(cos), h)
			atLeast("Rope sin", len(sin), h)
			inRuns(2, 0, func(p pointers, n int) { rotate(p[0], p[1], p[2], p[3], n) }, x[:h], x[h:2*h], cos, sin)
		}
	}
	k.Rope, k.RopeInverse = rotation(v.rope), rotation(v.ropeInverse)
	k.AdamW = func(master, m, vv, grad []float32, lr, beta1, beta2, eps, bias1, bias2, decay float32) {
		n := len(grad)
		atLeast("AdamW master", len(master), n)
		atLeast("AdamW m", len(m), n)
		atLeast("AdamW v", len(vv), n)
		c := [...]float32{beta1, 1 - beta1, beta2, 1 - beta2, bias1, bias2, eps, 1 - lr*decay, lr}
		inRuns(3, 0, func(p pointers, n int) { v.adamW(p[0], p[1], p[2], p[3], hide(&c[0]), n) }, master[:n], m, vv, grad)
	}
	k.F32ToBF16 = func(dst []uint16, x []float32) {
		atLeast("F32ToBF16 dst", len(dst), len(x))
		whole := len(x) &^ 15
		if whole > 0 {
			v.narrow(unsafe.SliceData(dst), unsafe.SliceData(x), whole)
		}
		f32ToBF16(dst[whole:], x[whole:])
	}
	k.BF16ToF32 = func(dst []float32, x []uint16) {
		atLeast("BF16ToF32 dst", len(dst), len(x))
		whole := len(x) &^ 15
		if whole > 0 {
			v.widen(unsafe.SliceData(dst), unsafe.SliceData(x), whole)
		}
		bf16ToF32(dst[whole:], x[whole:])
	}
}
