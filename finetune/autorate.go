package finetune

import (
	"math"

	"bhive/adapters"
)

// AutoRate is the learning rate that "auto" stands for. Adam moves every element of B by about the rate whatever the gradient's
// size, so what matters is how far one such step moves a linear's output: rate·scaling·‖z‖, and ‖z‖ grows with √rank and with the rows of A.
// docs/learning-rate.md has the sweep.
func AutoRate(b *adapters.Basis, rank int, alpha float64) float64 {
	const at16 = 5e-3 // rank 16, alpha 32, rows of unit length
	rate := at16 * math.Pow(16/float64(rank), 0.75)
	rate *= 2 / (alpha / float64(rank))
	rate /= rowScale(b, rank)
	return min(max(rate, 1e-6), 1)
}

// rowScale is how large z is beside what orthonormal rows would give. Rows of method activations are scaled to that; of the others
// it is their length that counts.
func rowScale(b *adapters.Basis, rank int) float64 {
	if b.Method == adapters.Orthonormal || b.Method == adapters.Activations {
		return 1
	}
	sum, n := 0.0, 0
	for layer := range b.Geometry.Layers {
		for site := range adapters.NumSites {
			for _, w := range b.A(layer, site)[:rank*b.Geometry.In(site)] {
				x := float64(math.Float32frombits(uint32(w) << 16))
				sum += x * x
			}
			n += rank
		}
	}
	if sum == 0 {
		return 1
	}
	return math.Sqrt(sum / float64(n))
}

// autoCorrection is whether the gradient is corrected where a job does not say: rows that are neither orthonormal nor
// whitened need it.
func autoCorrection(m adapters.Method) bool { return m == adapters.Kaiming || m == adapters.Import }
