package cpu

import (
	"fmt"

	"bhive/kernels"
	"bhive/kernels/cpu/simd"
)

// working is memory of the working dtype: one of the two is set.
type working struct {
	f []float32
	h []uint16
}

func newWorking(d kernels.DType, n int) working {
	if d == kernels.BF16 {
		return working{h: newElements[uint16](n)}
	}
	return working{f: newElements[float32](n)}
}

func (w working) at(i int) working {
	if w.h != nil {
		return working{h: w.h[i:]}
	}
	return working{f: w.f[i:]}
}

// put writes src at element i, rounded to the dtype.
func (w working) put(k *simd.Kernels, i int, src []float32) {
	if w.h != nil {
		k.F32ToBF16(w.h[i:][:len(src)], src)
		return
	}
	copy(w.f[i:], src)
}

// workingOf is a tensor of the working dtype as memory from its offset on.
func (b *Backend) workingOf(t kernels.Tensor, name string) working {
	if b.config.Working == kernels.BF16 {
		return working{h: elements[uint16](t, kernels.BF16, name)}
	}
	return working{f: elements[float32](t, kernels.F32, name)}
}

// weight is [W; A], row-major, W in its format.
type weight struct {
	k          *simd.Kernels
	out, in, r int
	format     kernels.Format
	f          []float32
	h          []uint16
	q          []int8
	scale      []float32 // [out, blocks]
	blocks     int       // scales a row
	a          working
	bytes      int64
}

func (w *weight) Out() int     { return w.out }
func (w *weight) In() int      { return w.in }
func (w *weight) R() int       { return w.r }
func (w *weight) Bytes() int64 { return w.bytes }

// rows of [W; A].
func (w *weight) rows() int { return w.out + w.r }

// NewWeight copies a weight in. It returns ErrNoMemory where it does not fit, and an error for parts that do not belong together.
func (b *Backend) NewWeight(spec kernels.WeightSpec) (kernels.Weight, error) {
	if spec.Shard.Count > 1 {
		return nil, fmt.Errorf("cpu: shard %d of %d: the CPU is one device", spec.Shard.Index, spec.Shard.Count)
	}
	if len(spec.Parts) == 0 {
		return nil, fmt.Errorf("cpu: a weight without parts")
	}
	w := &weight{k: b.k, in: spec.Parts[0].Cols(), format: spec.Format}
	for i, p := range spec.Parts {
		if p.Cols() != w.in {
			return nil, fmt.Errorf("cpu: part %d of a weight has %d columns, the first %d", i, p.Cols(), w.in)
		}
		w.out += p.Rows()
	}
	if spec.A != nil {
		if spec.A.Cols() != w.in {
			return nil, fmt.Errorf("cpu: A has %d columns, its weight %d", spec.A.Cols(), w.in)
		}
		w.r = spec.A.Rows()
	}
	w.blocks = (w.in + simd.Block - 1) / simd.Block
	n := int64(w.out) * int64(w.in)
	switch spec.Format {
	case kernels.FormatF32:
		w.bytes = 4 * n
	case kernels.FormatBF16:
		w.bytes = 2 * n
	case kernels.FormatInt8:
		w.bytes = n + 4*int64(w.out)*int64(w.blocks)
	default:
		return nil, fmt.Errorf("cpu: weight format %q is not known", spec.Format)
	}
	w.bytes += int64(w.r) * int64(w.in) * int64(b.config.Working.Size())
	if err := b.reserve(w.bytes, "a weight"); err != nil {
		return nil, err
	}
	switch spec.Format {
	case kernels.FormatF32:
		w.f = newElements[float32](int(n))
	case kernels.FormatBF16:
		w.h = newElements[uint16](int(n))
	case kernels.FormatInt8:
		w.q = newElements[int8](int(n))
		w.scale = newElements[float32](w.out * w.blocks)
	}
	w.fill(spec, b.config.Working)
	return w, nil
}

func (w *weight) fill(spec kernels.WeightSpec, d kernels.DType) {
	row := make([]float32, w.in)
	at := 0
	for _, p := range spec.Parts {
		for i := range p.Rows() {
			p.Row(i, row)
			switch w.format {
			case kernels.FormatF32:
				copy(w.f[at*w.in:], row)
			case kernels.FormatBF16:
				w.k.F32ToBF16(w.h[at*w.in:][:w.in], row)
			case kernels.FormatInt8:
				w.k.QuantizeInt8(row, w.q[at*w.in:][:w.in], w.scale[at*w.blocks:][:w.blocks])
			}
			at++
		}
	}
	if w.r == 0 {
		return
	}
	w.a = newWorking(d, w.r*w.in)
	for i := range w.r {
		spec.A.Row(i, row)
		w.a.put(w.k, i*w.in, row)
	}
}

// FreeWeight gives a weight's memory back.
func (b *Backend) FreeWeight(w kernels.Weight) {
	own := w.(*weight)
	b.used -= own.bytes
	*own = weight{k: own.k}
}

// row writes row i of W, widened, to dst.
func (w *weight) row(i int, dst []float32) {
	switch w.format {
	case kernels.FormatF32:
		copy(dst, w.f[i*w.in:][:w.in])
	case kernels.FormatBF16:
		w.k.BF16ToF32(dst, w.h[i*w.in:][:w.in])
	case kernels.FormatInt8:
		q, s := w.q[i*w.in:][:w.in], w.scale[i*w.blocks:][:w.blocks]
		for j, v := range q {
			dst[j] = float32(v) * s[j/simd.Block]
		}
	}
}

// dotNT writes columns [n0, n1) of yz for the first m rows of x. z is rounded to the working dtype.
func (w *weight) dotNT(yz, x mat, m, n0, n1 int) {
	if m == 0 {
		return
	}
	if to := min(n1, w.out); n0 < to {
		y := yz.at[n0:]
		switch w.format {
		case kernels.FormatF32:
			w.k.DotNTF32(y, yz.ld, x.at, x.ld, w.f[n0*w.in:], w.in, m, to-n0, w.in)
		case kernels.FormatBF16:
			w.k.DotNTBF16(y, yz.ld, x.at, x.ld, w.h[n0*w.in:], w.in, m, to-n0, w.in)
		case kernels.FormatInt8:
			w.k.DotNTInt8(y, yz.ld, x.at, x.ld, w.q[n0*w.in:], w.in, w.scale[n0*w.blocks:], w.blocks, m, to-n0, w.in)
		}
	}
	if from := max(n0, w.out); from < n1 {
		y, at, n := yz.at[from:], (from-w.out)*w.in, n1-from
		if w.a.h == nil {
			w.k.DotNTF32(y, yz.ld, x.at, x.ld, w.a.f[at:], w.in, m, n, w.in)
			return
		}
		w.k.DotNTBF16(y, yz.ld, x.at, x.ld, w.a.h[at:], w.in, m, n, w.in)
		for i := range m {
			w.k.RoundBF16InPlace(y[i*yz.ld:][:n])
		}
	}
}

// dotNN writes the sum of rows [n0, n1) of [W; A] weighted by dyz's columns [n0, n1) to dx, which has their columns
// [k0, k1), for the first m rows. k0 is a multiple of 32.
func (w *weight) dotNN(dx, dyz mat, m, n0, n1, k0, k1 int) {
	if m == 0 {
		return
	}
	x, k, accumulate := dx.at, k1-k0, false
	if to := min(n1, w.out); n0 < to {
		dy, at, n := dyz.at[n0:], n0*w.in+k0, to-n0
		switch w.format {
		case kernels.FormatF32:
			w.k.DotNNF32(x, dx.ld, dy, dyz.ld, w.f[at:], w.in, m, n, k, accumulate)
		case kernels.FormatBF16:
			w.k.DotNNBF16(x, dx.ld, dy, dyz.ld, w.h[at:], w.in, m, n, k, accumulate)
		case kernels.FormatInt8:
			w.k.DotNNInt8(x, dx.ld, dy, dyz.ld, w.q[at:], w.in, w.scale[n0*w.blocks+k0/simd.Block:], w.blocks, m, n, k, accumulate)
		}
		accumulate = true
	}
	if from := max(n0, w.out); from < n1 {
		dz, at, n := dyz.at[from:], (from-w.out)*w.in+k0, n1-from
		if w.a.h != nil {
			w.k.DotNNBF16(x, dx.ld, dz, dyz.ld, w.a.h[at:], w.in, m, n, k, accumulate)
		} else {
			w.k.DotNNF32(x, dx.ld, dz, dyz.ld, w.a.f[at:], w.in, m, n, k, accumulate)
		}
	}
}
