// Package simd holds the hot primitives of the CPU backend: small dense products over float32 activations and
// float32, bfloat16 or block-scaled int8 weights, and the vector operations between them. There are three
// implementations of every function: AVX-512, AVX2+FMA (both Go assembly) and portable Go.
//
// # Shapes
//
// Matrices are row-major slices with a leading dimension in elements: element (i, j) of a is a[i*lda+j]. A slice may
// end with the last element used; nothing beyond it is read or written, and columns between the width and the
// leading dimension are never touched. bfloat16 is a uint16. Int8 weights have one float32 scale for every 32
// elements of a row: element (n, k) is float32(w[n*ldw+k]) * s[n*lds+k/32], rounded to float32. A shape that does
// not fit its slice panics. Every function runs on the calling goroutine and allocates nothing; the caller splits
// work over rows or columns.
//
// # Batch invariance
//
// Bits of one row of a result do not depend on how many rows are computed together, on where the row stands, or on
// how rows and columns are split over calls. Each element has one order of operations, whatever the tile:
//
//   - Reductions along the contiguous dimension (DotNT, ExpandNT, Dot, AttnScores, SumSquares, the sum of SoftmaxExp
//     and ExpSumMax) keep 16 float32 lanes that start at zero. Lane j takes the elements k ≡ j (mod 16) in ascending
//     order with fused multiply-add. A tail is padded with zeros. Then lanes i and i+8 are added, then i+4, i+2, i+1.
//   - Products that reduce over rows (DotNN, DotTN, AttnCombine, Axpy) are one chain of fused multiply-adds an element,
//     rows ascending, starting from the element's old value where they accumulate and from zero where they do not.
//   - Everything else is elementwise, and the tail computes what the main loop computes.
//
// Hence DotNT over int8 or bfloat16 weights equals, bit for bit, DotNT over the same weights widened to float32, and
// ExpandNT equals DotNT followed by Add. AVX-512 and AVX2 agree bit for bit. Portable Go follows the same order but
// is free to round a product before it is added, and takes exp from package math: it agrees to rounding only.
//
// # Choice of implementation
//
// Best is chosen once, when the package is initialised, from the CPU's features, and is never changed. It is the only
// package state. The build tag purego leaves portable Go alone, as on other architectures than amd64. Tests and benchmarks take every implementation that this machine can run from Implementations.
package simd
