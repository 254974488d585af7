package kernels

import (
	"math"
	"testing"
)

// TestPhilox holds the generator to the known answers of Random123's kat_vectors for philox4x32 with 10 rounds.
func TestPhilox(t *testing.T) {
	for _, c := range []struct {
		key  uint64
		ctr  [4]uint32
		want [4]uint32
	}{
		{0, [4]uint32{}, [4]uint32{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
		{math.MaxUint64, [4]uint32{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, [4]uint32{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
		{0x299f31d0a4093822, [4]uint32{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, [4]uint32{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
	} {
		if got := Philox(c.key, c.ctr[0], c.ctr[1], c.ctr[2], c.ctr[3]); got != c.want {
			t.Errorf("Philox(%x, %x) = %x, want %x", c.key, c.ctr, got, c.want)
		}
	}
}

// TestGumbel: mean and variance of the noise are those of the standard Gumbel distribution, and it is always finite.
func TestGumbel(t *testing.T) {
	const n = 1 << 17
	sum, squares := 0.0, 0.0
	for i := range uint32(n) {
		g := float64(Gumbel(77, i%64, i/64))
		sum, squares = sum+g, squares+g*g
	}
	mean := sum / n
	if v := squares/n - mean*mean; math.Abs(mean-0.5772) > 0.02 || math.Abs(v-math.Pi*math.Pi/6) > 0.05 {
		t.Errorf("mean %v, variance %v", mean, v)
	}
	for _, u := range []float32{0.5 / (1 << 23), (1<<23 - 0.5) / (1 << 23)} {
		if !(u > 0 && u < 1) {
			t.Errorf("a uniform of %v", u)
		}
	}
}
