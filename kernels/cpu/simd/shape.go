package simd

import "fmt"

// need panics unless a slice of the given length holds a rows×cols matrix of leading dimension ld.
func need(name string, length, rows, ld, cols int) {
	if rows < 0 || cols < 0 || (rows > 1 && ld < cols) {
		panic(fmt.Sprintf("simd: %s: %d rows of %d with leading dimension %d", name, rows, cols, ld))
	}
	if rows > 0 && cols > 0 && length < (rows-1)*ld+cols {
		panic(fmt.Sprintf("simd: %s: %d elements hold no %d×%d matrix of leading dimension %d", name, length, rows, cols, ld))
	}
}

// atLeast panics unless a vector has n elements.
func atLeast(name string, length, n int) {
	if length < n {
		panic(fmt.Sprintf("simd: %s: %d elements, need %d", name, length, n))
	}
}

// blocks is the number of scales of a row of k int8 weights.
func blocks(k int) int { return (k + Block - 1) / Block }
