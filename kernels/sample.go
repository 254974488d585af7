package kernels

import "math"

// Philox is Philox4x32-10 (Salmon et al., 2011): four random words of a key and a counter.
func Philox(key uint64, c0, c1, c2, c3 uint32) [4]uint32 {
	k0, k1 := uint32(key), uint32(key>>32)
	for range 10 {
		a, b := uint64(c0)*0xD2511F53, uint64(c2)*0xCD9E8D57
		c0, c1, c2, c3 = uint32(b>>32)^c1^k0, uint32(b), uint32(a>>32)^c3^k1, uint32(a)
		k0 += 0x9E3779B9
		k1 += 0xBB67AE85
	}
	return [4]uint32{c0, c1, c2, c3}
}

// Uniform4 is the noise of tokens 4·group … 4·group+3 in a draw: word i of Philox(seed, draw, group, 0, 0), as a float32 in
// (0, 1) with 23 random bits, never 0 or 1.
func Uniform4(seed uint64, draw, group uint32) [4]float32 {
	var u [4]float32
	for i, w := range Philox(seed, draw, group, 0, 0) {
		u[i] = (float32(w>>9) + 0.5) / (1 << 23)
	}
	return u
}

// Gumbel is the noise that Sample adds to a token's logit/temperature: −log(−log u) with the token's u of [Uniform4]. It
// depends on its arguments alone. Devices agree to float32 rounding.
func Gumbel(seed uint64, draw, token uint32) float32 {
	u := Uniform4(seed, draw, token/4)[token%4]
	return float32(-math.Log(-math.Log(float64(u))))
}
