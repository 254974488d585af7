package cpu

import (
	"fmt"
	"unsafe"

	"bhive/kernels"
)

// buffer is one allocation, aligned to a cache line.
type buffer struct {
	bytes []byte
}

func (m *buffer) Bytes() int64 { return int64(len(m.bytes)) }

// alignment of allocations, in bytes.
const alignment = 64

func newBytes(n int) []byte {
	raw := make([]byte, n+alignment)
	preferHugePages(raw)
	at := int(-uintptr(unsafe.Pointer(unsafe.SliceData(raw))) & (alignment - 1))
	return raw[at : at+n : at+n]
}

// view is memory as elements of another type.
func view[E any](b []byte) []E {
	var e E
	return unsafe.Slice((*E)(unsafe.Pointer(unsafe.SliceData(b))), len(b)/int(unsafe.Sizeof(e)))
}

func newElements[E any](n int) []E {
	var e E
	return view[E](newBytes(n * int(unsafe.Sizeof(e))))
}

// reserve counts n bytes against the limit.
func (b *Backend) reserve(n int64, what string) error {
	if b.closed {
		panic("cpu: the backend is closed")
	}
	if n < 0 || b.limit > 0 && n > b.limit-b.used {
		return fmt.Errorf("cpu: %s of %d bytes with %d of %d in use: %w", what, n, b.used, b.limit, kernels.ErrNoMemory)
	}
	b.used += n
	return nil
}

// Alloc returns a zeroed tensor.
func (b *Backend) Alloc(d kernels.DType, rows, cols int) (kernels.Tensor, error) {
	if rows < 0 || cols < 0 {
		panic(fmt.Sprintf("cpu: a tensor of %d×%d", rows, cols))
	}
	if cols > 0 && rows > maxBytes/d.Size()/cols {
		return kernels.Tensor{}, fmt.Errorf("cpu: a tensor of %d×%d %s: %w", rows, cols, d, kernels.ErrNoMemory)
	}
	n := rows * cols * d.Size()
	if err := b.reserve(int64(n), "a tensor"); err != nil {
		return kernels.Tensor{}, err
	}
	return kernels.Tensor{Buf: &buffer{newBytes(n)}, DType: d, Rows: rows, Cols: cols, Stride: cols}, nil
}

const maxBytes = 1 << 46

// Free gives a tensor's memory back.
func (b *Backend) Free(t kernels.Tensor) {
	if t.Buf == nil {
		return
	}
	m := t.Buf.(*buffer)
	if m.bytes == nil {
		panic("cpu: a tensor is freed twice")
	}
	b.used -= m.Bytes()
	m.bytes = nil
	b.forgetRecords(m)
}

// Pinned returns host memory; on the CPU any memory will do.
func (b *Backend) Pinned(n int) ([]byte, error) {
	if err := b.reserve(int64(n), "pinned memory"); err != nil {
		return nil, err
	}
	return newBytes(n), nil
}

// FreePinned gives memory from Pinned back.
func (b *Backend) FreePinned(p []byte) { b.used -= int64(len(p)) }

// raw is a contiguous tensor's memory.
func raw(t kernels.Tensor) []byte {
	if !t.Contiguous() {
		panic("cpu: a copy to or from a tensor with gaps")
	}
	size := t.DType.Size()
	at := int(t.Off) * size
	return t.Buf.(*buffer).bytes[at:][:int(t.Elements())*size]
}

// Upload copies src to the start of dst.
func (b *Backend) Upload(s kernels.Stream, dst kernels.Tensor, src []byte) {
	if len(src) > len(raw(dst)) {
		panic(fmt.Sprintf("cpu: upload of %d bytes to %d", len(src), len(raw(dst))))
	}
	if g := recording(s); g != nil {
		g.add(func() { copy(raw(dst), src) })
		return
	}
	copy(raw(dst), src)
}

// Download copies src to dst, as far as dst goes.
func (b *Backend) Download(s kernels.Stream, dst []byte, src kernels.Tensor) {
	if len(dst) > len(raw(src)) {
		panic(fmt.Sprintf("cpu: download of %d bytes from %d", len(dst), len(raw(src))))
	}
	if g := recording(s); g != nil {
		g.add(func() { copy(dst, raw(src)) })
		return
	}
	copy(dst, raw(src))
}

// mat is a float32 tensor's elements: row i begins at i·ld.
type mat struct {
	at   []float32
	ld   int
	rows int
	cols int
}

func (m mat) row(i int) []float32 { return m.at[i*m.ld:][:m.cols:m.cols] }

// cut is the view of columns [from, to).
func (m mat) cut(from, to int) mat {
	if m.rows > 0 {
		m.at = m.at[from:]
	}
	m.cols = to - from
	return m
}

// from is the view of rows from i on.
func (m mat) from(i int) mat {
	m.at = m.at[min(i*m.ld, len(m.at)):]
	m.rows -= i
	return m
}

func elements[E any](t kernels.Tensor, d kernels.DType, name string) []E {
	if t.DType != d {
		panic(fmt.Sprintf("cpu: %s is %s, want %s", name, t.DType, d))
	}
	return view[E](t.Buf.(*buffer).bytes)[t.Off:]
}

// matrix is a float32 tensor of at least rows rows and exactly cols columns.
func matrix(t kernels.Tensor, rows, cols int, name string) mat {
	if !t.Present() {
		panic(fmt.Sprintf("cpu: %s is absent", name))
	}
	if t.Rows < rows || t.Cols != cols {
		panic(fmt.Sprintf("cpu: %s is [%d, %d], want [%d, %d]", name, t.Rows, t.Cols, rows, cols))
	}
	return mat{elements[float32](t, kernels.F32, name), t.Stride, t.Rows, t.Cols}
}

// optional is matrix, or the zero mat where t is absent.
func optional(t kernels.Tensor, rows, cols int, name string) mat {
	if !t.Present() {
		return mat{}
	}
	return matrix(t, rows, cols, name)
}

// vector is a float32 tensor [1, ≥ n].
func vector(t kernels.Tensor, n int, name string) []float32 {
	if !t.Present() || t.Rows != 1 || t.Cols < n {
		panic(fmt.Sprintf("cpu: %s is [%d, %d], want [1, %d]", name, t.Rows, t.Cols, n))
	}
	return elements[float32](t, kernels.F32, name)[:t.Cols]
}

func optionalVector(t kernels.Tensor, n int, name string) []float32 {
	if !t.Present() {
		return nil
	}
	return vector(t, n, name)
}

// ints is an int32 tensor's elements from its offset on.
func ints(t kernels.Tensor, name string) []int32 { return elements[int32](t, kernels.I32, name) }
