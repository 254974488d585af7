package cpu

import (
	"fmt"

	"bhive/kernels"
)

// Zero: t = 0.
func (b *Backend) Zero(s kernels.Stream, t kernels.Tensor) {
	if g := recording(s); g != nil {
		g.add(func() { zero(t) })
		return
	}
	zero(t)
}

func zero(t kernels.Tensor) {
	if t.Contiguous() {
		clear(raw(t))
		return
	}
	for i := range t.Rows {
		clear(raw(t.RowRange(i, i+1)))
	}
}

// Copy: dst = src, converting between float32 and bfloat16.
func (b *Backend) Copy(s kernels.Stream, dst, src kernels.Tensor) {
	if dst.Rows != src.Rows || dst.Cols != src.Cols {
		panic(fmt.Sprintf("cpu: copy of [%d, %d] to [%d, %d]", src.Rows, src.Cols, dst.Rows, dst.Cols))
	}
	if g := recording(s); g != nil {
		g.add(func() { b.copyRows(dst, src) })
		return
	}
	b.copyRows(dst, src)
}

func (b *Backend) copyRows(dst, src kernels.Tensor) {
	for i := range dst.Rows {
		d, s := dst.RowRange(i, i+1), src.RowRange(i, i+1)
		switch {
		case d.DType == s.DType:
			copy(raw(d), raw(s))
		case d.DType == kernels.BF16 && s.DType == kernels.F32:
			b.k.F32ToBF16(view[uint16](raw(d)), view[float32](raw(s)))
		case d.DType == kernels.F32 && s.DType == kernels.BF16:
			b.k.BF16ToF32(view[float32](raw(d)), view[uint16](raw(s)))
		default:
			panic(fmt.Sprintf("cpu: copy of %s to %s", s.DType, d.DType))
		}
	}
}
