//go:build cuda

package cuda

import (
	"math"
	"slices"
	"testing"

	"bhive/kernels"
)

// side is one of the two backends that an op runs on.
type side struct {
	testing.TB
	kernels.Backend
	s     kernels.Stream
	act   kernels.DType
	taken []kernels.Tensor // freed with the pair
}

// Alloc is the backend's, for as long as the pair lives.
func (s *side) Alloc(d kernels.DType, rows, cols int) (kernels.Tensor, error) {
	t, err := s.Backend.Alloc(d, rows, cols)
	s.taken = append(s.taken, t)
	return t, err
}

// Free is the backend's.
func (s *side) Free(t kernels.Tensor) {
	s.taken = slices.DeleteFunc(s.taken, func(x kernels.Tensor) bool { return x.Buf == t.Buf })
	s.Backend.Free(t)
}

// tensor uploads x as d.
func (s *side) tensor(d kernels.DType, rows, cols int, x []float32) kernels.Tensor {
	s.Helper()
	t, err := s.Alloc(d, rows, cols)
	if err != nil {
		s.Fatal(err)
	}
	if d == kernels.BF16 {
		h := make([]uint16, len(x))
		for i, v := range x {
			h[i] = roundBF16(v)
		}
		s.Upload(s.s, t, bytesOf(h))
	} else {
		s.Upload(s.s, t, bytesOf(x))
	}
	s.sync()
	return t
}

func (s *side) sync() {
	s.Helper()
	if err := s.s.Sync(); err != nil {
		s.Fatal(err)
	}
}

// values downloads a contiguous tensor, widened.
func (s *side) values(t kernels.Tensor) []float32 {
	s.Helper()
	x := make([]float32, t.Elements())
	if t.DType == kernels.BF16 {
		h := make([]uint16, len(x))
		s.Download(s.s, bytesOf(h), t)
		s.sync()
		for i, v := range h {
			x[i] = math.Float32frombits(uint32(v) << 16)
		}
		return x
	}
	s.Download(s.s, bytesOf(x), t)
	s.sync()
	return x
}

func (s *side) ints(t kernels.Tensor) []int32 {
	s.Helper()
	x := make([]int32, t.Elements())
	s.Download(s.s, bytesOf(x), t)
	s.sync()
	return x
}
