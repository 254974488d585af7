//go:build cuda

package cuda

import (
	"errors"
	"fmt"
	"unsafe"

	"gorgonia.org/cu"

	"bhive/kernels"
)

// buffer is one allocation.
type buffer struct {
	at    cu.DevicePtr
	bytes int64
}

func (m *buffer) Bytes() int64 { return m.bytes }

// allocate takes device memory as it is; 0 bytes take a few.
func (b *Backend) allocate(n int64) (cu.DevicePtr, error) {
	if b.closed {
		panic("cuda: the backend is closed")
	}
	p, err := cu.MemAlloc(max(n, 16))
	if errors.Is(err, cu.OutOfMemory) {
		return 0, fmt.Errorf("cuda: %d bytes: %w", n, kernels.ErrNoMemory)
	}
	if err != nil {
		return 0, fmt.Errorf("cuda: allocating %d bytes: %w", n, err)
	}
	return p, nil
}

func (b *Backend) zeroed(n int64) (cu.DevicePtr, error) {
	p, err := b.allocate(n)
	if err != nil {
		return 0, err
	}
	b.keep(cu.MemsetD8Async(p, 0, max(n, 16), b.setup))
	b.keep(b.setup.Synchronize())
	return p, nil
}

// Alloc returns a zeroed tensor.
func (b *Backend) Alloc(d kernels.DType, rows, cols int) (kernels.Tensor, error) {
	defer b.enter()()
	if rows < 0 || cols < 0 {
		panic(fmt.Sprintf("cuda: a tensor of %d×%d", rows, cols))
	}
	if cols > 0 && rows > 1<<46/d.Size()/cols {
		return kernels.Tensor{}, fmt.Errorf("cuda: a tensor of %d×%d %s: %w", rows, cols, d, kernels.ErrNoMemory)
	}
	n := int64(rows) * int64(cols) * int64(d.Size())
	p, err := b.zeroed(n)
	if err != nil {
		return kernels.Tensor{}, err
	}
	return kernels.Tensor{Buf: &buffer{p, n}, DType: d, Rows: rows, Cols: cols, Stride: cols}, nil
}

// Free gives a tensor's memory back.
func (b *Backend) Free(t kernels.Tensor) {
	if t.Buf == nil {
		return
	}
	defer b.enter()()
	m := t.Buf.(*buffer)
	if m.at == 0 {
		panic("cuda: a tensor is freed twice")
	}
	b.keep(cu.MemFree(m.at))
	m.at = 0
}

// Pinned returns page-locked host memory.
func (b *Backend) Pinned(n int) ([]byte, error) {
	p, err := pinned(max(n, 1))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", kernels.ErrNoMemory, err)
	}
	clear(p)
	return p[:n], nil
}

// FreePinned gives memory from Pinned back.
func (b *Backend) FreePinned(p []byte) { b.keep(freePinned(p)) }

// Upload copies src to the start of dst. From pinned memory the copy is asynchronous.
func (b *Backend) Upload(s kernels.Stream, dst kernels.Tensor, src []byte) {
	if int64(len(src)) > span(dst) {
		panic(fmt.Sprintf("cuda: upload of %d bytes to %d", len(src), span(dst)))
	}
	if len(src) == 0 {
		return
	}
	defer b.enter()()
	b.keep(cu.MemcpyHtoDAsync(cu.DevicePtr(address(dst)), unsafe.Pointer(&src[0]), int64(len(src)), s.(*stream).s))
}

// Download copies src to dst, as far as dst goes.
func (b *Backend) Download(s kernels.Stream, dst []byte, src kernels.Tensor) {
	if int64(len(dst)) > span(src) {
		panic(fmt.Sprintf("cuda: download of %d bytes from %d", len(dst), span(src)))
	}
	if len(dst) == 0 {
		return
	}
	defer b.enter()()
	b.keep(cu.MemcpyDtoHAsync(unsafe.Pointer(&dst[0]), cu.DevicePtr(address(src)), int64(len(dst)), s.(*stream).s))
}

// span is a contiguous tensor's size in bytes.
func span(t kernels.Tensor) int64 {
	if !t.Contiguous() {
		panic("cuda: a copy to or from a tensor with gaps")
	}
	return t.Elements() * int64(t.DType.Size())
}

// address is where a tensor's first element lies, 0 for an absent tensor.
func address(t kernels.Tensor) uint64 {
	if !t.Present() {
		return 0
	}
	return uint64(t.Buf.(*buffer).at) + uint64(t.Off)*uint64(t.DType.Size())
}

// matrix checks a tensor of at least rows rows and exactly cols columns, and gives its address and stride.
func matrix(t kernels.Tensor, d kernels.DType, rows, cols int, name string) (at, stride uint64) {
	switch {
	case !t.Present():
		panic(fmt.Sprintf("cuda: %s is absent", name))
	case t.DType != d:
		panic(fmt.Sprintf("cuda: %s is %s, want %s", name, t.DType, d))
	case t.Rows < rows || t.Cols != cols:
		panic(fmt.Sprintf("cuda: %s is [%d, %d], want [%d, %d]", name, t.Rows, t.Cols, rows, cols))
	}
	return address(t), uint64(t.Stride)
}

// optional is matrix, or zeros where t is absent.
func optional(t kernels.Tensor, d kernels.DType, rows, cols int, name string) (at, stride uint64) {
	if !t.Present() {
		return 0, 0
	}
	return matrix(t, d, rows, cols, name)
}

// vector checks a float32 tensor [1, ≥ n]; absent gives 0.
func vector(t kernels.Tensor, n int, name string) uint64 {
	if !t.Present() {
		return 0
	}
	if t.DType != kernels.F32 || t.Rows != 1 || t.Cols < n {
		panic(fmt.Sprintf("cuda: %s is %s [%d, %d], want float32 [1, %d]", name, t.DType, t.Rows, t.Cols, n))
	}
	return address(t)
}
