package kernels

import (
	"errors"
	"fmt"
)

// ErrNoMemory is returned when a device cannot hold what was asked for; nothing was allocated.
var ErrNoMemory = errors.New("out of device memory")

// DType is the type of a tensor's elements.
type DType uint8

const (
	F32  DType = iota // IEEE single precision
	BF16              // bfloat16
	I32               // signed 32-bit integer; also the words of a step record
	U8                // bytes
)

// Size is an element's size in bytes.
func (d DType) Size() int { return [...]int{4, 2, 4, 1}[d] }

func (d DType) String() string { return [...]string{"float32", "bfloat16", "int32", "uint8"}[d] }

// Buffer is one allocation on a device. Its contents are reached through the backend that made it.
type Buffer interface {
	Bytes() int64
}

// Tensor is a view of [Rows, Cols] elements in a buffer; row i begins at element Off + i·Stride.
// The zero Tensor stands for "absent" where an op's argument is optional.
type Tensor struct {
	Buf    Buffer
	DType  DType
	Off    int64 // elements
	Rows   int
	Cols   int
	Stride int // elements from one row to the next, ≥ Cols
}

// Present reports whether t is a real tensor.
func (t Tensor) Present() bool { return t.Buf != nil }

// RowRange is the view of rows [from, to).
func (t Tensor) RowRange(from, to int) Tensor {
	if from < 0 || to < from || to > t.Rows {
		panic(fmt.Sprintf("kernels: rows [%d, %d) of %d", from, to, t.Rows))
	}
	t.Off += int64(from) * int64(t.Stride)
	t.Rows = to - from
	return t
}

// ColRange is the view of columns [from, to); its rows keep their stride.
func (t Tensor) ColRange(from, to int) Tensor {
	if from < 0 || to < from || to > t.Cols {
		panic(fmt.Sprintf("kernels: columns [%d, %d) of %d", from, to, t.Cols))
	}
	t.Off += int64(from)
	t.Cols = to - from
	return t
}

// Contiguous reports whether the rows follow each other without gaps.
func (t Tensor) Contiguous() bool { return t.Rows <= 1 || t.Stride == t.Cols }

// Elements is Rows·Cols.
func (t Tensor) Elements() int64 { return int64(t.Rows) * int64(t.Cols) }
