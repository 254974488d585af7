package simd

import "math"

var portable = Kernels{
	Name:     "portable",
	DotNTF32: dotNTF32, DotNTBF16: dotNTBF16, DotNTInt8: dotNTInt8,
	DotNNF32: dotNNF32, DotNNBF16: dotNNBF16, DotNNInt8: dotNNInt8, DotTN: dotTN,
	ExpandNTF32: expandNTF32, ExpandNTBF16: expandNTBF16,
	AttnScoresF32: attnScoresF32, AttnScoresBF16: attnScoresBF16,
	AttnCombineF32: attnCombineF32, AttnCombineBF16: attnCombineBF16,
	DotF32: dotF32, DotBF16: dotBF16, AxpyF32: axpyF32, AxpyBF16: axpyBF16,
	SoftmaxExp: softmaxExp, ExpSumMax: expSumMax, ArgMax: argMax, SumSquares: sumSquares,
	SiluMul: siluMul, SiluMulBackward: siluMulBackward, ScaleMul: scaleMul, Add: add, Scale: scaleBy,
	F32ToBF16: f32ToBF16, BF16ToF32: bf16ToF32, RoundBF16InPlace: roundBF16InPlace,
	Rope: rope, RopeInverse: ropeInverse, AdamW: adamW, QuantizeInt8: quantizeInt8,
}

func exp(x float32) float32 { return float32(math.Exp(float64(x))) }

func softmaxExp(x []float32, max float32) float32 {
	var acc lanes
	for i, v := range x {
		x[i] = exp(v - max)
		acc[i%16] += x[i]
	}
	return acc.sum()
}

func expSumMax(x []float32) (max, sum float32) {
	max = float32(math.Inf(-1))
	for _, v := range x {
		if v > max {
			max = v
		}
	}
	if math.IsInf(float64(max), -1) {
		return max, 0
	}
	var acc lanes
	for i, v := range x {
		acc[i%16] += exp(v - max)
	}
	return max, acc.sum()
}

func argMax(x []float32) int {
	at, max := 0, float32(math.Inf(-1))
	for i, v := range x {
		if v > max {
			at, max = i, v
		}
	}
	return at
}

func sumSquares(x []float32) float32 { return dotF32(x, x) }

func sigmoid(x float32) float32 { return 1 / (1 + exp(-x)) }

func siluMul(dst, gate, up []float32) {
	gate, up = gate[:len(dst)], up[:len(dst)]
	for i := range dst {
		dst[i] = gate[i] * sigmoid(gate[i]) * up[i]
	}
}

func siluMulBackward(dgate, dup, da, gate, up []float32) {
	n := len(da)
	dgate, dup, gate, up = dgate[:n], dup[:n], gate[:n], up[:n]
	for i := range da {
		d, g, u := da[i], gate[i], up[i]
		s := sigmoid(g)
		dgate[i] = d * u * s * (1 + g*(1-s))
		dup[i] = d * g * s
	}
}

func scaleMul(dst, x []float32, s float32, w []float32) {
	x, w = x[:len(dst)], w[:len(dst)]
	for i := range dst {
		dst[i] = x[i] * s * w[i]
	}
}

func add(dst, x []float32) {
	dst = dst[:len(x)]
	for i, v := range x {
		dst[i] += v
	}
}

func scaleBy(x []float32, s float32) {
	for i := range x {
		x[i] *= s
	}
}

func narrow(x float32) uint16 {
	b := math.Float32bits(x)
	if x != x {
		return uint16(b>>16) | 0x40
	}
	return uint16((b + 0x7fff + b>>16&1) >> 16)
}

func f32ToBF16(dst []uint16, x []float32) {
	dst = dst[:len(x)]
	for i, v := range x {
		dst[i] = narrow(v)
	}
}

func bf16ToF32(dst []float32, x []uint16) {
	dst = dst[:len(x)]
	for i, v := range x {
		dst[i] = widen(v)
	}
}

func roundBF16InPlace(x []float32) {
	for i, v := range x {
		x[i] = widen(narrow(v))
	}
}

func rope(x, cos, sin []float32) {
	h := len(x) / 2
	a, b, cos, sin := x[:h], x[h:2*h], cos[:h], sin[:h]
	for i := range a {
		p, q := a[i], b[i]
		a[i] = p*cos[i] - q*sin[i]
		b[i] = q*cos[i] + p*sin[i]
	}
}

func ropeInverse(x, cos, sin []float32) {
	h := len(x) / 2
	a, b, cos, sin := x[:h], x[h:2*h], cos[:h], sin[:h]
	for i := range a {
		p, q := a[i], b[i]
		a[i] = p*cos[i] + q*sin[i]
		b[i] = q*cos[i] - p*sin[i]
	}
}

func adamW(master, m, v, grad []float32, lr, beta1, beta2, eps, bias1, bias2, decay float32) {
	n := len(grad)
	master, m, v = master[:n], m[:n], v[:n]
	for i, g := range grad {
		m[i] = beta1*m[i] + (1-beta1)*g
		v[i] = beta2*v[i] + (1-beta2)*(g*g)
		step := m[i] / bias1 / (float32(math.Sqrt(float64(v[i]/bias2))) + eps)
		master[i] = master[i]*(1-lr*decay) - lr*step
	}
}

func quantizeInt8(row []float32, q []int8, scales []float32) {
	atLeast("QuantizeInt8 q", len(q), len(row))
	atLeast("QuantizeInt8 scales", len(scales), blocks(len(row)))
	for b := 0; b*Block < len(row); b++ {
		block := row[b*Block : min(len(row), (b+1)*Block)]
		var max float32
		for _, v := range block {
			max = maxAbs(max, v)
		}
		scales[b] = max / 127
		for i, v := range block {
			q[b*Block+i] = quantum(v, scales[b])
		}
	}
}

func maxAbs(max, v float32) float32 {
	if v = math.Float32frombits(math.Float32bits(v) &^ (1 << 31)); v > max {
		return v
	}
	return max
}

// quantum rounds v/scale to an integer of at most 127 in size, by division so that every machine agrees.
func quantum(v, scale float32) int8 {
	if scale == 0 {
		return 0
	}
	return int8(min(127, max(-127, math.RoundToEven(float64(v/scale)))))
}
