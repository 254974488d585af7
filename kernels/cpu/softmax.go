package cpu

import (
	"math"

	"bhive/kernels/cpu/simd"
)

// softmaxRun is how many exponentials are added in float32. The sums of runs are added in order, in float64: beside a sum
// near 1, tens of thousands of small terms would each lose bits, and always too much or always too little.
const softmaxRun = 512

// softmax: x[i] = exp(x[i] − top), and returns Σ of the results.
func softmax(k *simd.Kernels, x []float32, top float32) (sum float64) {
	for len(x) > softmaxRun {
		sum += float64(k.SoftmaxExp(x[:softmaxRun], top))
		x = x[softmaxRun:]
	}
	return sum + float64(k.SoftmaxExp(x, top))
}

// logSumExp is log Σ exp(x[i]), −Inf where all are −Inf, +Inf where one is. x is left as it is.
func logSumExp(k *simd.Kernels, x []float32) float32 {
	top, sum := math.Inf(-1), 0.0
	for at := 0; at < len(x); at += softmaxRun {
		m, s := k.ExpSumMax(x[at:min(at+softmaxRun, len(x))])
		switch max, part := float64(m), float64(s); {
		case math.IsInf(max, -1): // nothing to add
		case math.IsInf(max, 1):
			return m
		case max > top:
			top, sum = max, sum*math.Exp(top-max)+part
		default:
			sum += part * math.Exp(max-top)
		}
	}
	return float32(top + math.Log(sum))
}
