package simd

import "encoding/binary"

// ReadBandwidth reads every byte of buf once, in order and in whole 64-byte lines, and returns the xor of its 8-byte
// words: the plain read loop against which memory-bound primitives are measured. Bytes after the last whole line
// are left out.
func ReadBandwidth(buf []byte) uint64 { return readLoop(buf[:len(buf)&^63]) }

// PeakFMA does n rounds of independent fused multiply-adds in registers and returns the floating-point operations
// done: the ceiling of compute-bound primitives. The portable build multiplies and adds in scalars.
func PeakFMA(n int) (flops int) { return peakFMA(n) }

func readLoopPortable(buf []byte) uint64 {
	var a uint64
	for ; len(buf) >= 8; buf = buf[8:] {
		a ^= binary.LittleEndian.Uint64(buf)
	}
	return a
}

func peakFMAPortable(n int) int {
	a, b, c, d := float32(1), float32(1), float32(1), float32(1)
	for range n {
		a, b, c, d = a*0.5+1, b*0.5+1, c*0.5+1, d*0.5+1
	}
	sink := a + b + c + d
	if sink != sink {
		return 0
	}
	return 8 * n
}
