//go:build !purego

package simd

import "unsafe"

//go:generate go run ./gen

// ntArgs are the arguments of a DotNT kernel. Leading dimensions are in bytes. The kernels read it by offset.
type ntArgs struct {
	y, x, w, s         unsafe.Pointer
	ldy, ldx, ldw, lds int
	mt, nt, k          int // tiles of rows of x, tiles of rows of w, elements of a row
	add                int // 1 to add to y, 0 to overwrite it
}

// nnArgs are the arguments of a DotNN or DotTN kernel. Strides are in bytes. The kernels read it by offset.
type nnArgs struct {
	c, a, w, s       unsafe.Pointer
	ldc              int
	aRow, aStep      int // from one row of c to the next, and from one term of its sum to the next
	ldw, lds         int
	mt, n, mask, add int // tiles of rows, terms, lanes of the last vector, 1 to add to c
}
