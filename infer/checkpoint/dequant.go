package checkpoint

import (
	"encoding/binary"
	"math"
)

var le = binary.LittleEndian

// dequantize turns whole blocks of src into float32; len(dst) is a multiple of the block's values.
func dequantize(d DType, src []byte, dst []float32) {
	n, size := d.Block()
	if n == 0 || len(dst)%n != 0 || len(src) != len(dst)/n*size {
		panic("checkpoint: blocks do not fit the destination")
	}
	switch d {
	case F32:
		for i := range dst {
			dst[i] = math.Float32frombits(le.Uint32(src[4*i:]))
		}
	case F16:
		for i := range dst {
			dst[i] = halfToFloat(le.Uint16(src[2*i:]))
		}
	case BF16:
		for i := range dst {
			dst[i] = math.Float32frombits(uint32(le.Uint16(src[2*i:])) << 16)
		}
	default:
		block := blocks[d]
		for len(dst) > 0 {
			block(src[:size:size], dst[:n:n])
			src, dst = src[size:], dst[n:]
		}
	}
}

// blocks turn one block into its values.
var blocks = map[DType]func(b []byte, y []float32){
	Q8_0: func(b []byte, y []float32) {
		d := halfToFloat(le.Uint16(b))
		for i := range 32 {
			y[i] = d * float32(int8(b[2+i]))
		}
	},
	Q4_0: func(b []byte, y []float32) {
		d := halfToFloat(le.Uint16(b))
		for i := range 16 {
			q := b[2+i]
			y[i], y[i+16] = d*float32(int(q&15)-8), d*float32(int(q>>4)-8)
		}
	},
	Q4_1: func(b []byte, y []float32) {
		d, m := halfToFloat(le.Uint16(b)), halfToFloat(le.Uint16(b[2:]))
		for i := range 16 {
			q := b[4+i]
			y[i], y[i+16] = float32(d*float32(q&15))+m, float32(d*float32(q>>4))+m
		}
	},
	Q5_0: func(b []byte, y []float32) {
		d, h := halfToFloat(le.Uint16(b)), le.Uint32(b[2:])
		for i := range 16 {
			q := b[6+i]
			lo, hi := int(q&15)|int(h>>i&1)<<4, int(q>>4)|int(h>>(i+16)&1)<<4
			y[i], y[i+16] = d*float32(lo-16), d*float32(hi-16)
		}
	},
	Q5_1: func(b []byte, y []float32) {
		d, m, h := halfToFloat(le.Uint16(b)), halfToFloat(le.Uint16(b[2:])), le.Uint32(b[4:])
		for i := range 16 {
			q := b[8+i]
			lo, hi := int(q&15)|int(h>>i&1)<<4, int(q>>4)|int(h>>(i+16)&1)<<4
			y[i], y[i+16] = float32(d*float32(lo))+m, float32(d*float32(hi))+m
		}
	},
	Q4_K: func(b []byte, y []float32) {
		d, dmin, scales, qs := halfToFloat(le.Uint16(b)), halfToFloat(le.Uint16(b[2:])), b[4:16], b[16:]
		for j := range 8 {
			s, m := scaleMin(scales, j)
			ds, dm, shift := d*float32(s), dmin*float32(m), 4*(j&1)
			for i := range 32 {
				y[32*j+i] = float32(ds*float32(qs[32*(j/2)+i]>>shift&15)) - dm
			}
		}
	},
	Q5_K: func(b []byte, y []float32) {
		d, dmin, scales, qh, qs := halfToFloat(le.Uint16(b)), halfToFloat(le.Uint16(b[2:])), b[4:16], b[16:48], b[48:]
		for j := range 8 {
			s, m := scaleMin(scales, j)
			ds, dm, shift := d*float32(s), dmin*float32(m), 4*(j&1)
			for i := range 32 {
				q := qs[32*(j/2)+i]>>shift&15 | (qh[i]>>j&1)<<4
				y[32*j+i] = float32(ds*float32(q)) - dm
			}
		}
	},
	Q6_K: func(b []byte, y []float32) {
		ql, qh, scales, d := b[:128], b[128:192], b[192:208], halfToFloat(le.Uint16(b[208:]))
		for half := range 2 {
			for part := range 4 {
				for i := range 32 {
					q := ql[64*half+32*(part&1)+i]>>(4*(part/2))&15 | (qh[32*half+i]>>(2*part)&3)<<4
					s := d * float32(int8(scales[8*half+2*part+i/16]))
					y[128*half+32*part+i] = s * float32(int(q)-32)
				}
			}
		}
	},
}

// scaleMin unpacks the six-bit scale and minimum of sub-block j from the twelve bytes of a K block.
func scaleMin(q []byte, j int) (scale, minimum byte) {
	if j < 4 {
		return q[j] & 63, q[j+4] & 63
	}
	return q[j+4]&15 | q[j-4]>>6<<4, q[j+4]>>4 | q[j]>>6<<4
}

// halfToFloat widens IEEE half precision exactly.
func halfToFloat(h uint16) float32 {
	sign, exp, frac := uint32(h>>15)<<31, uint32(h>>10&31), uint32(h&1023)
	switch exp {
	case 31:
		return math.Float32frombits(sign | 255<<23 | frac<<13)
	case 0:
		f := float32(frac) * (1.0 / (1 << 24))
		return math.Float32frombits(sign | math.Float32bits(f))
	}
	return math.Float32frombits(sign | (exp+112)<<23 | frac<<13)
}

// floatToBF16 rounds to nearest, ties to even; NaN stays NaN.
func floatToBF16(f float32) uint16 {
	b := math.Float32bits(f)
	if f != f {
		return uint16(b>>16) | 64
	}
	return uint16((b + 0x7fff + b>>16&1) >> 16)
}
