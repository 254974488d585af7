//go:build !purego

package simd

import "golang.org/x/sys/cpu"

// native returns the assembly implementations that this CPU can run, the fastest last.
func native() []Kernels {
	var all []Kernels
	if hasAVX2() {
		k := portable
		k.Name = "avx2"
		matrices(&k, &set256F32, &set256BF16, &set256Int8)
		vectors(&k, &vectors256)
		all = append(all, k)
	}
	if hasAVX512() {
		k := portable
		k.Name = "avx512"
		matrices(&k, &set512F32, &set512BF16, &set512Int8)
		vectors(&k, &vectors512)
		all = append(all, k)
	}
	return all
}

func hasAVX2() bool { return cpu.X86.HasAVX2 && cpu.X86.HasFMA }

func hasAVX512() bool {
	return hasAVX2() && cpu.X86.HasAVX512F && cpu.X86.HasAVX512BW && cpu.X86.HasAVX512DQ && cpu.X86.HasAVX512VL
}

func readLoop(buf []byte) uint64 {
	switch {
	case len(buf) == 0:
		return 0
	case hasAVX512():
		return readLoop512(&buf[0], len(buf))
	case hasAVX2():
		return readLoop256(&buf[0], len(buf))
	}
	return readLoopPortable(buf)
}

func peakFMA(n int) int {
	switch {
	case n <= 0:
		return 0
	case hasAVX512():
		peakFMA512(n)
		return n * 12 * 16 * 2
	case hasAVX2():
		peakFMA256(n)
		return n * 12 * 8 * 2
	}
	return peakFMAPortable(n)
}
