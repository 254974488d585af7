package simd

// Block is the number of int8 weights of a row that share one scale.
const Block = 32

// Kernels is one implementation of every primitive. Legend: m, n, k, r, g, d are counts, ldX is the leading dimension
// of X in elements, Σ runs in ascending order as the package comment fixes it. Outputs may not overlap inputs unless
// the comment of the field says so.
type Kernels struct {
	// Name is "avx512", "avx2" or "portable".
	Name string

	// DotNTF32: y[m,n] = x[m,k]·w[n,k]ᵀ.
	DotNTF32 func(y []float32, ldy int, x []float32, ldx int, w []float32, ldw int, m, n, k int)
	// DotNTBF16: y[m,n] = x[m,k]·w[n,k]ᵀ, w bfloat16.
	DotNTBF16 func(y []float32, ldy int, x []float32, ldx int, w []uint16, ldw int, m, n, k int)
	// DotNTInt8: y[m,n] = x[m,k]·(w[n,k]∘s[n,⌈k/32⌉])ᵀ, w int8 with one scale a block of 32.
	DotNTInt8 func(y []float32, ldy int, x []float32, ldx int, w []int8, ldw int, s []float32, lds int, m, n, k int)

	// DotNNF32: dx[m,k] = dy[m,n]·w[n,k], or dx += with accumulate.
	DotNNF32 func(dx []float32, lddx int, dy []float32, lddy int, w []float32, ldw int, m, n, k int, accumulate bool)
	// DotNNBF16: dx[m,k] = dy[m,n]·w[n,k], or dx += with accumulate; w bfloat16.
	DotNNBF16 func(dx []float32, lddx int, dy []float32, lddy int, w []uint16, ldw int, m, n, k int, accumulate bool)
	// DotNNInt8: dx[m,k] = dy[m,n]·(w[n,k]∘s[n,⌈k/32⌉]), or dx += with accumulate; w int8 with one scale a block of 32.
	DotNNInt8 func(dx []float32, lddx int, dy []float32, lddy int, w []int8, ldw int, s []float32, lds int, m, n, k int, accumulate bool)
	// DotTN: db[n,r] += dy[m,n]ᵀ·z[m,r]. With dy = z = x it is the Gram matrix c[k,k] += xᵀx.
	DotTN func(db []float32, lddb int, dy []float32, lddy int, z []float32, ldz int, m, n, r int)

	// ExpandNTF32: y[m,n] += z[m,r]·b[n,r]ᵀ.
	ExpandNTF32 func(y []float32, ldy int, z []float32, ldz int, b []float32, ldb int, m, n, r int)
	// ExpandNTBF16: y[m,n] += z[m,r]·b[n,r]ᵀ, b bfloat16.
	ExpandNTBF16 func(y []float32, ldy int, z []float32, ldz int, b []uint16, ldb int, m, n, r int)

	// AttnScoresF32: scores[g,n] = scale · q[g,d]·k[n,d]ᵀ for g queries over a run of n key rows.
	AttnScoresF32 func(scores []float32, lds int, q []float32, ldq int, k []float32, ldk int, g, n, d int, scale float32)
	// AttnScoresBF16: scores[g,n] = scale · q[g,d]·k[n,d]ᵀ, k bfloat16.
	AttnScoresBF16 func(scores []float32, lds int, q []float32, ldq int, k []uint16, ldk int, g, n, d int, scale float32)
	// AttnCombineF32: o[g,d] += p[g,n]·v[n,d] for g queries over a run of n value rows, rows ascending.
	AttnCombineF32 func(o []float32, ldo int, p []float32, ldp int, v []float32, ldv int, g, n, d int)
	// AttnCombineBF16: o[g,d] += p[g,n]·v[n,d], v bfloat16.
	AttnCombineBF16 func(o []float32, ldo int, p []float32, ldp int, v []uint16, ldv int, g, n, d int)

	// DotF32 returns Σ x[i]·y[i], len(y) ≥ len(x).
	DotF32 func(x, y []float32) float32
	// DotBF16 returns Σ x[i]·y[i], y bfloat16, len(y) ≥ len(x).
	DotBF16 func(x []float32, y []uint16) float32
	// AxpyF32: y[i] += a·x[i] for i < len(x), len(y) ≥ len(x).
	AxpyF32 func(y []float32, a float32, x []float32)
	// AxpyBF16: y[i] += a·x[i] for i < len(x), x bfloat16, len(y) ≥ len(x).
	AxpyBF16 func(y []float32, a float32, x []uint16)

	// SoftmaxExp: x[i] = exp(x[i] − max), and returns Σ of the results. Max must not be −Inf. The error of exp is below
	// 2 ulp where the result is a normal number.
	SoftmaxExp func(x []float32, max float32) (sum float32)
	// ExpSumMax returns max = max x[i] and sum = Σ exp(x[i] − max), so that log Σ exp x = max + log sum. x is left as
	// it is. For an empty x, or one of −Inf only, max is −Inf and sum 0.
	ExpSumMax func(x []float32) (max, sum float32)
	// ArgMax returns the lowest index of the greatest x[i]; NaN never wins. 0 if x is empty or has nothing above −Inf.
	ArgMax func(x []float32) int
	// SumSquares returns Σ x[i]².
	SumSquares func(x []float32) float32

	// SiluMul: dst[i] = gate[i]·σ(gate[i])·up[i] for i < len(dst), σ(x) = 1/(1+exp(−x)). dst may be gate or up.
	SiluMul func(dst, gate, up []float32)
	// SiluMulBackward: with a = gate·σ(gate)·up, dgate[i] = da·up·σ(gate)·(1 + gate·(1−σ(gate))) and dup[i] =
	// da·gate·σ(gate), for i < len(da). dgate and dup may be any of the inputs.
	SiluMulBackward func(dgate, dup, da, gate, up []float32)
	// ScaleMul: dst[i] = (x[i]·s)·w[i] for i < len(dst). dst may be x.
	ScaleMul func(dst, x []float32, s float32, w []float32)
	// Add: dst[i] += x[i] for i < len(x).
	Add func(dst, x []float32)
	// Scale: x[i] *= s.
	Scale func(x []float32, s float32)

	// F32ToBF16: dst[i] = bfloat16(x[i]) for i < len(x), to nearest, ties to even; NaN stays NaN.
	F32ToBF16 func(dst []uint16, x []float32)
	// BF16ToF32: dst[i] = float32(x[i]) for i < len(x).
	BF16ToF32 func(dst []float32, x []uint16)
	// RoundBF16InPlace: x[i] = float32(bfloat16(x[i])).
	RoundBF16InPlace func(x []float32)

	// Rope rotates one head in place: with h = len(x)/2 and i < h, (a, b) = (x[i], x[i+h]) becomes
	// (a·cos[i] − b·sin[i], b·cos[i] + a·sin[i]). cos and sin hold h angles.
	Rope func(x, cos, sin []float32)
	// RopeInverse undoes Rope (and is its transpose, for the backward).
	RopeInverse func(x, cos, sin []float32)

	// AdamW does one step on n = len(grad) parameters:
	//
	//	m = beta1·m + (1−beta1)·g;  v = beta2·v + (1−beta2)·g²
	//	w = w·(1 − lr·decay) − lr·(m/bias1) / (√(v/bias2) + eps)
	//
	// bias1 = 1−beta1ᵗ and bias2 = 1−beta2ᵗ for step t from 1.
	AdamW func(master, m, v, grad []float32, lr, beta1, beta2, eps, bias1, bias2, decay float32)

	// QuantizeInt8: for each block of 32 of the row (the last may be short), scales[b] = max|x|/127 and
	// q[i] = round(x[i]/scales[b]), ties to even. A block of zeros has scale 0.
	QuantizeInt8 func(row []float32, q []int8, scales []float32)
}

// Implementations returns every implementation that this machine can run: portable first, the fastest last.
func Implementations() []Kernels {
	return append([]Kernels{portable}, native()...)
}

// Best is the fastest implementation that this machine can run. It is set once at initialisation: treat it as a
// constant.
var Best = func() *Kernels {
	all := Implementations()
	return &all[len(all)-1]
}()
