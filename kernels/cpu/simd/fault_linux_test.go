package simd

import (
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// fence hands out slices that end where a page begins that may not be touched.
type fence struct{ t *testing.T }

func (f fence) bytes(n int) unsafe.Pointer {
	page := unix.Getpagesize()
	pages := (n + page - 1) / page
	m, err := unix.Mmap(-1, 0, (pages+1)*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = unix.Munmap(m) })
	if err := unix.Mprotect(m[pages*page:], unix.PROT_NONE); err != nil {
		f.t.Fatal(err)
	}
	return unsafe.Pointer(&m[pages*page-n])
}

func fenced[T any](f fence, x []T) []T {
	y := unsafe.Slice((*T)(f.bytes(len(x)*int(unsafe.Sizeof(x[0])))), len(x))
	copy(y, x)
	return y
}

// TestNoAccessPastTheEnd runs everything on slices that end at the end of a page; a stray access ends the process.
func TestNoAccessPastTheEnd(t *testing.T) {
	each(t, func(t *testing.T, k Kernels) {
		for _, s := range []shape{{1, 1, 1}, {5, 7, 15}, {7, 17, 33}, {1, 33, 133}, {9, 20, 40}, {3, 16, 16}, {17, 5, 97}} {
			t.Run(s.String(), func(t *testing.T) {
				f := fence{t}
				r := newRand(s.m, s.n, s.k)
				w := newWeights(r, s.n, s.k, s.k)
				w.lds = blocks(s.k)
				w.scales = fenced(f, filled(s.n*w.lds, float32(0.5)))
				w.f32, w.bf16, w.int8 = fenced(f, w.f32), fenced(f, w.bf16), fenced(f, w.int8)
				x, y := fenced(f, normal(r, s.m*s.k)), fenced(f, normal(r, s.m*s.n))
				for _, c := range w.formats(k) {
					c.nt(y, s.n, x, s.k, s.m, s.n, s.k)
					c.nn(x, s.k, y, s.n, s.m, s.n, s.k, true)
				}
				k.ExpandNTF32(y, s.n, x, s.k, w.f32, s.k, s.m, s.n, s.k)
				k.ExpandNTBF16(y, s.n, x, s.k, w.bf16, s.k, s.m, s.n, s.k)
				k.DotTN(w.f32, s.k, y, s.n, x, s.k, s.m, s.n, s.k)

				n := s.m * s.k
				a, b, c, d := fenced(f, normal(r, n)), fenced(f, normal(r, n)), fenced(f, normal(r, n)), fenced(f, normal(r, n))
				h := fenced(f, bf16(a))
				k.DotF32(a, b)
				k.DotBF16(a, h)
				k.AxpyF32(a, 0.5, b)
				k.AxpyBF16(a, 0.5, h)
				k.SoftmaxExp(a, 3)
				k.ExpSumMax(a)
				k.ArgMax(a)
				k.SumSquares(a)
				k.SiluMul(a, b, c)
				k.SiluMulBackward(a, b, c, d, a)
				k.ScaleMul(a, b, 0.5, c)
				k.Add(a, b)
				k.Scale(a, 0.5)
				k.F32ToBF16(h, a)
				k.BF16ToF32(a, h)
				k.RoundBF16InPlace(a)
				half := fenced(f, b[:n/2+1])[1:]
				k.Rope(a, half, half)
				k.RopeInverse(a, half, half)
				k.AdamW(a, b, c, d, 1e-3, 0.9, 0.99, 1e-8, 0.1, 0.1, 0)
				k.QuantizeInt8(a, fenced(f, make([]int8, n)), fenced(f, make([]float32, blocks(n))))
				buf := unsafe.Slice((*byte)(f.bytes(n+64)), n+64)
				ReadBandwidth(buf)
			})
		}
	})
}

func TestNoAllocation(t *testing.T) {
	each(t, func(t *testing.T, k Kernels) {
		const m, n, kk = 5, 19, 45
		w := newWeights(newRand(), n, kk, kk)
		x, y, a, b := make([]float32, m*kk), make([]float32, m*n), make([]float32, kk), make([]float32, kk)
		if got := testing.AllocsPerRun(20, func() {
			for _, rows := range []int{1, m} {
				k.DotNTF32(y, n, x, kk, w.f32, kk, rows, n, kk)
				k.DotNTBF16(y, n, x, kk, w.bf16, kk, rows, n, kk)
				k.DotNTInt8(y, n, x, kk, w.int8, kk, w.scales, w.lds, rows, n, kk)
				k.DotNNF32(x, kk, y, n, w.f32, kk, rows, n, kk, false)
				k.DotTN(w.f32, kk, y, n, x, kk, rows, n, kk)
				k.ExpandNTBF16(y, n, x, kk, w.bf16, kk, rows, n, kk)
				k.AttnScoresBF16(y, n, x, kk, w.bf16, kk, rows, n, kk, 0.5)
			}
			k.DotF32(a, b)
			k.AxpyF32(a, 0.5, b)
			k.SoftmaxExp(a, 1)
			k.ExpSumMax(a)
			k.ArgMax(a)
			k.SiluMul(a, a, b)
			k.ScaleMul(a, a, 0.5, b)
			k.Add(a, b)
			k.Scale(a, 0.5)
			k.Rope(a, b, b)
			k.AdamW(a, b, y, a, 1e-3, 0.9, 0.99, 1e-8, 0.1, 0.1, 0)
		}); got != 0 {
			t.Errorf("%v allocations", got)
		}
	})
}
