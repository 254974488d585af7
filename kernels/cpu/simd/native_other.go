//go:build !amd64 || purego

package simd

func native() []Kernels { return nil }

func readLoop(buf []byte) uint64 { return readLoopPortable(buf) }

func peakFMA(n int) int { return peakFMAPortable(n) }
