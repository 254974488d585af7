package adapters

import (
	"encoding/binary"
	"math"
)

// toBF16 rounds to nearest, ties to even; NaN stays NaN.
func toBF16(f float32) uint16 {
	u := math.Float32bits(f)
	if u&0x7fffffff > 0x7f800000 {
		return uint16(u>>16) | 0x40
	}
	return uint16((u + 0x7fff + u>>16&1) >> 16)
}

// roundBF16 writes toBF16 of each value, little-endian, up to the first that is not finite in bfloat16: it returns that one's index, or −1.
func roundBF16(to []byte, values []float32) int {
	const least = 0x7f7f8000 // rounds to infinity
	from := values
	for ; len(from) >= 4 && len(to) >= 8; from, to = from[4:], to[8:] {
		a, b, c, d := math.Float32bits(from[0]), math.Float32bits(from[1]), math.Float32bits(from[2]), math.Float32bits(from[3])
		if max(a&0x7fffffff, b&0x7fffffff, c&0x7fffffff, d&0x7fffffff) >= least {
			break
		}
		a, b, c, d = a+0x7fff+a>>16&1, b+0x7fff+b>>16&1, c+0x7fff+c>>16&1, d+0x7fff+d>>16&1
		binary.LittleEndian.PutUint64(to, uint64(a>>16|b&0xffff0000)|uint64(c>>16|d&0xffff0000)<<32)
	}
	for i, v := range from {
		h := toBF16(v)
		if h&0x7f80 == 0x7f80 {
			return len(values) - len(from) + i
		}
		binary.LittleEndian.PutUint16(to[2*i:], h)
	}
	return -1
}

func fromBF16(h uint16) float32 { return math.Float32frombits(uint32(h) << 16) }

// scaleBF16 is to[i] = s · from[i], of which there are at least as many.
func scaleBF16(to []float32, from []byte, s float32) {
	for ; len(to) >= 4 && len(from) >= 8; to, from = to[4:], from[8:] {
		x := binary.LittleEndian.Uint64(from)
		lo, hi := uint32(x), uint32(x>>32)
		to[0], to[1], to[2], to[3] = s*math.Float32frombits(lo<<16), s*math.Float32frombits(lo&0xffff0000), s*math.Float32frombits(hi<<16), s*math.Float32frombits(hi&0xffff0000)
	}
	for i := range to {
		to[i] = s * fromBF16(binary.LittleEndian.Uint16(from[2*i:]))
	}
}

func finite(f float32) bool { return math.Float32bits(f)&0x7f800000 != 0x7f800000 }

func fromF32(b []byte) float32 { return math.Float32frombits(binary.LittleEndian.Uint32(b)) }

func bf16Bytes(v []uint16) []byte {
	out := make([]byte, 2*len(v))
	for i, x := range v {
		binary.LittleEndian.PutUint16(out[2*i:], x)
	}
	return out
}

func fromF16(h uint16) float32 {
	sign, exp, frac := uint32(h>>15)<<31, uint32(h>>10)&31, uint32(h)&0x3ff
	switch exp {
	case 0: // zero or subnormal: frac·2⁻²⁴
		return math.Float32frombits(sign | math.Float32bits(float32(frac)*0x1p-24))
	case 31:
		return math.Float32frombits(sign | 0x7f800000 | frac<<13)
	}
	return math.Float32frombits(sign | (exp+112)<<23 | frac<<13)
}
