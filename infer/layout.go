package infer

import (
	"cmp"
	"math"
	"math/bits"
	"slices"

	"bhive/kernels"
)

// layout places tensors in one allocation. Two of them may lie in one place where they are never alive at once.
type layout struct {
	tensors []laid
}

// laid is a tensor of a layout.
type laid struct {
	to         *kernels.Tensor
	dtype      kernels.DType
	rows, cols int
	alive      moments
	at         int64 // bytes from the start
}

func (p *laid) bytes() int64 { return int64(p.rows) * int64(p.cols) * int64(p.dtype.Size()) }

func (p *laid) end() int64 { return p.at + aligned(p.bytes()) }

// moments is a set of the times at which a tensor is alive.
type moments uint64

// during is all moments from one to another, both of them too.
func during(from, to int) moments { return 2<<to - 1<<from }

func (m moments) count() int { return bits.OnesCount64(uint64(m)) }

// add asks for a tensor that is alive at those moments.
func (l *layout) add(to *kernels.Tensor, d kernels.DType, rows, cols int, alive moments) {
	if rows > 0 && cols > 0 {
		l.tensors = append(l.tensors, laid{to: to, dtype: d, rows: rows, cols: cols, alive: alive})
	}
}

// place finds a place for each tensor and says how many bytes that takes: those that live longest first, then the large ones, each in the
// first place where nothing lies that is alive with it.
func (l *layout) place() (bytes int64) {
	long := 0
	for _, p := range l.tensors {
		long = max(long, p.alive.count())
	}
	rank := func(p laid) int64 {
		if p.alive.count() == long {
			return math.MaxInt64
		}
		return p.bytes()
	}
	slices.SortStableFunc(l.tensors, func(a, b laid) int { return cmp.Compare(rank(b), rank(a)) })
	var near []*laid
	for i := range l.tensors {
		p := &l.tensors[i]
		near = near[:0]
		for j := range l.tensors[:i] {
			if o := &l.tensors[j]; o.alive&p.alive != 0 {
				near = append(near, o)
			}
		}
		slices.SortFunc(near, func(a, b *laid) int { return cmp.Compare(a.at, b.at) })
		for _, o := range near {
			if o.at >= p.end() {
				break
			}
			p.at = max(p.at, o.end())
		}
		bytes = max(bytes, p.end())
	}
	return bytes
}

// bind makes the tensors views of the allocation, once they are placed.
func (l *layout) bind(memory kernels.Tensor) {
	for _, p := range l.tensors {
		*p.to = kernels.Tensor{Buf: memory.Buf, DType: p.dtype, Off: p.at / int64(p.dtype.Size()), Rows: p.rows, Cols: p.cols, Stride: p.cols}
	}
}
