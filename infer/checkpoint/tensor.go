package checkpoint

import "fmt"

// Tensor is a view of a tensor in the mapped file. It is valid until its Checkpoint is closed, and safe for concurrent
// use.
type Tensor struct {
	Name  string // Hugging Face name
	Shape []int  // [rows, cols], or [n] for a vector
	DType DType

	data []byte // rows of stride bytes, in the file's order
	// interleaved is the head size where the file holds each head's rows as 0, D/2, 1, D/2+1, …; 0 where they are in
	// order.
	interleaved int
}

// Rows is the number of rows; a vector has one.
func (t Tensor) Rows() int {
	if len(t.Shape) == 2 {
		return t.Shape[0]
	}
	return 1
}

// Cols is the number of values in a row.
func (t Tensor) Cols() int { return t.Shape[len(t.Shape)-1] }

// InOrder says whether Raw holds the rows in Hugging Face order.
func (t Tensor) InOrder() bool { return t.interleaved == 0 }

// Raw is all of the tensor's bytes in the file's order (see InOrder), not copied. Do not change them.
func (t Tensor) Raw() []byte { return t.data }

// RowBytes is the bytes of row i in the tensor's storage format, not copied. Do not change them.
func (t Tensor) RowBytes(i int) []byte {
	if i < 0 || i >= t.Rows() {
		panic(fmt.Sprintf("checkpoint: row %d of %s %v", i, t.Name, t.Shape))
	}
	if d := t.interleaved; d > 0 {
		head, at := i/d, i%d
		i = head*d + at%(d/2)*2 + at/(d/2)
	}
	stride := len(t.data) / t.Rows()
	return t.data[i*stride : (i+1)*stride : (i+1)*stride]
}

// Row writes row i as float32 into dst [cols].
func (t Tensor) Row(i int, dst []float32) {
	if len(dst) != t.Cols() {
		panic(fmt.Sprintf("checkpoint: row of %d values for %s %v", len(dst), t.Name, t.Shape))
	}
	dequantize(t.DType, t.RowBytes(i), dst)
}

// BF16Row writes row i as bfloat16 bits into dst [cols]: a copy where the file holds BF16, else rounded to nearest even.
func (t Tensor) BF16Row(i int, dst []uint16) {
	if len(dst) != t.Cols() {
		panic(fmt.Sprintf("checkpoint: row of %d values for %s %v", len(dst), t.Name, t.Shape))
	}
	src := t.RowBytes(i)
	if t.DType == BF16 {
		for j := range dst {
			dst[j] = le.Uint16(src[2*j:])
		}
		return
	}
	n, size := t.DType.Block()
	step := max(n, 256/n*n) // whole blocks, few enough for the stack
	var buf [256]float32
	for j := 0; j < len(dst); j += step {
		part := buf[:min(step, len(dst)-j)]
		dequantize(t.DType, src[j/n*size:(j+len(part))/n*size], part)
		for k, f := range part {
			dst[j+k] = floatToBF16(f)
		}
	}
}

// Float32s is the whole tensor as float32, row-major.
func (t Tensor) Float32s() []float32 {
	rows, cols := t.Rows(), t.Cols()
	out := make([]float32, rows*cols)
	for i := range rows {
		t.Row(i, out[i*cols:(i+1)*cols])
	}
	return out
}
