package simd

import "golang.org/x/sys/cpu"

// native returns the assembly implementations that this CPU can run, the fastest last.
func native() []Kernels {
	var all []Kernels
	if hasAVX2() {
		k := portable
		k.Name = "avx2"
		matrices(&k, &set256F32, &set256BF16, &set256Int8)
		all = append(all, k)
	}
	if hasAVX512() {
		k := portable
		k.Name = "avx512"
		matrices(&k, &set512F32, &set512BF16, &set512Int8)
		all = append(all, k)
	}
	return all
}

func hasAVX2() bool { return cpu.X86.HasAVX2 && cpu.X86.HasFMA }

func hasAVX512() bool {
	return hasAVX2() && cpu.X86.HasAVX512F && cpu.X86.HasAVX512BW && cpu.X86.HasAVX512DQ && cpu.X86.HasAVX512VL
}

func readLoop(buf []byte) uint64 { return readLoopPortable(buf) }

func peakFMA(n int) int { return peakFMAPortable(n) }
