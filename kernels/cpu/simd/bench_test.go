package simd

import (
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Ceilings of this machine with all of its goroutines at work, measured once a run.
var ceilings = sync.OnceValues(func() (bytesPerSecond, flopsPerSecond float64) {
	const size = 128 << 20
	bufs := make([][]byte, runtime.GOMAXPROCS(0))
	for i := range bufs {
		bufs[i] = make([]byte, size)
		for j := 0; j < size; j += 4096 {
			bufs[i][j] = 1
		}
	}
	for range 7 {
		start := time.Now()
		parallel(func(i int) { ReadBandwidth(bufs[i]) })
		bytesPerSecond = max(bytesPerSecond, float64(len(bufs)*size)/time.Since(start).Seconds())
		start = time.Now()
		var flops atomic.Int64
		parallel(func(int) { flops.Add(int64(PeakFMA(1 << 22))) })
		flopsPerSecond = max(flopsPerSecond, float64(flops.Load())/time.Since(start).Seconds())
	}
	return
})

func parallel(f func(i int)) {
	var wg sync.WaitGroup
	for i := range runtime.GOMAXPROCS(0) {
		wg.Go(func() { f(i) })
	}
	wg.Wait()
}

// halves splits n over the goroutines in multiples of 48.
func part(n, i int) (from, to int) {
	p := runtime.GOMAXPROCS(0)
	step := (n/p + 47) / 48 * 48
	return min(n, i*step), min(n, (i+1)*step)
}

func report(b *testing.B, bytes, flops float64) {
	bw, peak := ceilings()
	s := b.Elapsed().Seconds() / float64(b.N)
	if bytes > 0 {
		b.ReportMetric(bytes/s/1e9, "GB/s")
		b.ReportMetric(100*bytes/s/bw, "%read")
	}
	if flops > 0 {
		b.ReportMetric(flops/s/1e9, "GFLOP/s")
		b.ReportMetric(100*flops/s/peak, "%fma")
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(s*1e6, "µs/op")
}

func BenchmarkCeilings(b *testing.B) {
	bw, peak := ceilings()
	for b.Loop() {
	}
	b.ReportMetric(bw/1e9, "GB/s")
	b.ReportMetric(peak/1e9, "GFLOP/s")
}

// copies makes enough weights that they come from memory, not from a cache.
func copies(bytes int) int { return max(1, (192<<20)/bytes) }

func benchmarked(b *testing.B, f func(b *testing.B, k Kernels)) {
	for _, k := range Implementations()[1:] {
		b.Run(k.Name, func(b *testing.B) { f(b, k) })
	}
}

func BenchmarkDotNT(b *testing.B) {
	benchmarked(b, func(b *testing.B, k Kernels) {
		for _, s := range []shape{{1, 1536, 576}, {1, 576, 1536}, {8, 1536, 576}, {32, 1536, 576}, {256, 1536, 576}, {256, 576, 1536}} {
			w := newWeights(newRand(), s.n, s.k, s.k)
			x, y := make([]float32, s.m*s.k), make([]float32, s.m*s.n)
			n := 1
			if s.m <= 8 {
				n = copies(s.n * s.k)
			}
			f32, h, q := make([][]float32, n), make([][]uint16, n), make([][]int8, n)
			for i := range n {
				f32[i], h[i], q[i] = append([]float32(nil), w.f32...), append([]uint16(nil), w.bf16...), append([]int8(nil), w.int8...)
			}
			at := 0
			for name, c := range map[string]struct {
				size float64
				f    func(from, to int)
			}{
				"f32": {4, func(from, to int) {
					k.DotNTF32(y[from:], s.n, x, s.k, f32[at][from*s.k:], s.k, s.m, to-from, s.k)
				}},
				"bf16": {2, func(from, to int) {
					k.DotNTBF16(y[from:], s.n, x, s.k, h[at][from*s.k:], s.k, s.m, to-from, s.k)
				}},
				"int8": {1.125, func(from, to int) {
					k.DotNTInt8(y[from:], s.n, x, s.k, q[at][from*s.k:], s.k, w.scales[from*w.lds:], w.lds, s.m, to-from, s.k)
				}},
			} {
				b.Run(fmt.Sprintf("%s/%v", name, s), func(b *testing.B) {
					ceilings()
					b.ResetTimer()
					// Many calls a fork, as the threads of a backend meet only once an op.
					per := n
					b.StopTimer()
					for b.Loop() {
						b.StartTimer()
						parallel(func(i int) {
							from, to := part(s.n, i)
							for range per {
								c.f(from, to)
							}
						})
						b.StopTimer()
						at = (at + 1) % n
					}
					work := float64(s.m*s.n*s.k) * float64(per)
					bytes := c.size * float64(s.n*s.k) * float64(per)
					if s.m > 8 {
						bytes = 0
					}
					report(b, bytes, 2*work)
				})
			}
		}
	})
}
