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

func fromBF16(h uint16) float32 { return math.Float32frombits(uint32(h) << 16) }

func finite(f float32) bool { return math.Float32bits(f)&0x7f800000 != 0x7f800000 }

func fromF32(b []byte) float32 { return math.Float32frombits(binary.LittleEndian.Uint32(b)) }

func bf16Bytes(v []uint16) []byte {
	out := make([]byte, 2*len(v))
	for i, x := range v {
		binary.LittleEndian.PutUint16(out[2*i:], x)
	}
	return out
}
