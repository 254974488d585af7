package simd

import (
	"runtime"
	"sync"
	"testing"
	"time"
)

// Ceilings of this machine with all of its goroutines at work, measured once a run.
var ceilings = sync.OnceValues(func() (bytesPerSecond, flopsPerSecond float64) {
	const size = 96 << 20
	bufs := make([][]byte, runtime.GOMAXPROCS(0))
	for i := range bufs {
		bufs[i] = make([]byte, size)
		for j := 0; j < size; j += 4096 {
			bufs[i][j] = 1
		}
	}
	const chunk = 4 << 20
	at := make([]int, len(bufs))
	bytesPerSecond = sustained(func(i int) float64 {
		at[i] = (at[i] + chunk) % size
		ReadBandwidth(bufs[i][at[i]:][:chunk])
		return chunk
	})
	flopsPerSecond = sustained(func(int) float64 { return float64(PeakFMA(1 << 16)) })
	return
})

// sustained calls f on every goroutine again and again and returns the best rate of its results a second, of all
// goroutines together, over any 20 ms: other tenants of the machine take turns at its cores.
func sustained(f func(i int) float64) float64 {
	var (
		mu          sync.Mutex
		total, best float64
		stop        = time.Now().Add(200 * time.Millisecond)
	)
	parallel(func(i int) {
		var from time.Time
		var before float64
		for time.Now().Before(stop) {
			done := f(i)
			mu.Lock()
			total += done
			if now := time.Now(); i == 0 && now.Sub(from) > 20*time.Millisecond {
				if !from.IsZero() {
					best = max(best, (total-before)/now.Sub(from).Seconds())
				}
				from, before = now, total
			}
			mu.Unlock()
		}
	})
	return best
}

func parallel(f func(i int)) {
	var wg sync.WaitGroup
	for i := range runtime.GOMAXPROCS(0) {
		wg.Go(func() { f(i) })
	}
	wg.Wait()
}

// part splits n over the goroutines in multiples of 48.
func part(n, i int) (from, to int) {
	p := runtime.GOMAXPROCS(0)
	step := (n/p + 47) / 48 * 48
	return min(n, i*step), min(n, (i+1)*step)
}

// report gives the rates of work that took s seconds.
func report(b *testing.B, s, bytes, flops float64) {
	bw, peak := ceilings()
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

// stream is the size in bytes of weights that come from memory, not from a cache.
const stream = 192 << 20

func benchmarked(b *testing.B, f func(b *testing.B, k Kernels)) {
	ceilings()
	for _, k := range Implementations()[1:] {
		b.Run(k.Name, func(b *testing.B) { f(b, k) })
	}
}

// products times a product, for a fixed time whatever b.N, over layers of weights [n, k] on every goroutine, each with its part of n.
func products(b *testing.B, s shape, size float64, layers int, f func(layer, from, to int)) {
	b.Run(s.String(), func(b *testing.B) {
		next := make([]int, runtime.GOMAXPROCS(0))
		rate := sustained(func(i int) float64 {
			from, to := part(s.n, i)
			f(next[i], from, to)
			next[i] = (next[i] + 1) % layers
			return float64(to-from) / float64(s.n)
		})
		bytes := size * float64(s.n*s.k)
		if s.m > 8 {
			bytes = 0
		}
		report(b, 1/rate, bytes, 2*float64(s.m*s.n*s.k))
	})
}

func filled[T any](n int, v ...T) []T {
	x := make([]T, n)
	for i := range x {
		x[i] = v[i%len(v)]
	}
	return x
}

var (
	someF32  = normal(newRand(1), 1009)
	someBF16 = bf16(someF32)
	someInt8 = []int8{1, -3, 100, 44, -127, 9, 12}
)

func BenchmarkDotNT(b *testing.B) {
	f32, h, q := filled(stream/4, someF32...), filled(stream/2, someBF16...), filled(stream, someInt8...)
	scales := filled(stream/Block, float32(0.01))
	benchmarked(b, func(b *testing.B, k Kernels) {
		for _, s := range []shape{{1, 1536, 576}, {1, 576, 1536}, {2, 1536, 576}, {4, 1536, 576}, {5, 1536, 576}, {8, 1536, 576}, {32, 1536, 576}, {256, 1536, 576}, {256, 576, 1536}} {
			x, y := filled(s.m*s.k, someF32...), make([]float32, s.m*s.n)
			size := s.n * s.k
			layers := func(bytes int) int {
				if s.m > 8 {
					return 1
				}
				return stream / (bytes * size)
			}
			b.Run("f32", func(b *testing.B) {
				products(b, s, 4, layers(4), func(l, from, to int) {
					k.DotNTF32(y[from:], s.n, x, s.k, f32[l*size+from*s.k:], s.k, s.m, to-from, s.k)
				})
			})
			b.Run("bf16", func(b *testing.B) {
				products(b, s, 2, layers(2), func(l, from, to int) {
					k.DotNTBF16(y[from:], s.n, x, s.k, h[l*size+from*s.k:], s.k, s.m, to-from, s.k)
				})
			})
			b.Run("int8", func(b *testing.B) {
				products(b, s, 1.125, layers(1), func(l, from, to int) {
					at := l*size + from*s.k
					k.DotNTInt8(y[from:], s.n, x, s.k, q[at:], s.k, scales[at/Block:], s.k/Block, s.m, to-from, s.k)
				})
			})
		}
	})
}

func BenchmarkDotNN(b *testing.B) {
	s := shape{256, 1536, 576}
	dy, dx := filled(s.m*s.n, someF32...), make([]float32, s.m*s.k)
	f32, h, q := filled(s.n*s.k, someF32...), filled(s.n*s.k, someBF16...), filled(s.n*s.k, someInt8...)
	scales := filled(s.n*s.k/Block, float32(0.01))
	benchmarked(b, func(b *testing.B, k Kernels) {
		half := func(f func(m0, m int)) func(_, from, to int) {
			return func(_, from, to int) { f(from*s.m/s.n, (to-from)*s.m/s.n) }
		}
		b.Run("f32", func(b *testing.B) {
			products(b, s, 4, 1, half(func(m0, m int) { k.DotNNF32(dx[m0*s.k:], s.k, dy[m0*s.n:], s.n, f32, s.k, m, s.n, s.k, false) }))
		})
		b.Run("bf16", func(b *testing.B) {
			products(b, s, 4, 1, half(func(m0, m int) { k.DotNNBF16(dx[m0*s.k:], s.k, dy[m0*s.n:], s.n, h, s.k, m, s.n, s.k, false) }))
		})
		b.Run("int8", func(b *testing.B) {
			products(b, s, 4, 1, half(func(m0, m int) {
				k.DotNNInt8(dx[m0*s.k:], s.k, dy[m0*s.n:], s.n, q, s.k, scales, s.k/Block, m, s.n, s.k, false)
			}))
		})
	})
}

func BenchmarkAdapter(b *testing.B) {
	h := filled(stream/2, someBF16...)
	benchmarked(b, func(b *testing.B, k Kernels) {
		for _, s := range []shape{{1, 1536, 16}, {1, 1536, 64}, {256, 1536, 16}} {
			z, y := filled(s.m*s.k, someF32...), make([]float32, s.m*s.n)
			layers := 1
			if s.m == 1 {
				layers = stream / 2 / (s.n * s.k)
			}
			b.Run("expand_bf16", func(b *testing.B) {
				products(b, s, 2, layers, func(l, from, to int) {
					k.ExpandNTBF16(y[from:], s.n, z, s.k, h[l*s.n*s.k+from*s.k:], s.k, s.m, to-from, s.k)
				})
			})
		}
		s := shape{256, 1536, 16}
		dy, z, db := filled(s.m*s.n, someF32...), filled(s.m*s.k, someF32...), make([]float32, s.n*s.k)
		b.Run("dottn", func(b *testing.B) {
			products(b, s, 4, 1, func(_, from, to int) {
				k.DotTN(db[from*s.k:], s.k, dy[from:], s.n, z, s.k, s.m, to-from, s.k)
			})
		})
	})
}

func BenchmarkAttention(b *testing.B) {
	benchmarked(b, func(b *testing.B, k Kernels) {
		for _, s := range []shape{{3, 16, 64}, {3, 256, 64}, {96, 256, 64}} {
			q, p, o := filled(s.m*s.k, someF32...), make([]float32, s.m*s.n), make([]float32, s.m*s.k)
			h := filled(s.n*s.k, someBF16...)
			b.Run("scores/"+s.String(), func(b *testing.B) {
				for b.Loop() {
					k.AttnScoresBF16(p, s.n, q, s.k, h, s.k, s.m, s.n, s.k, 0.125)
				}
				report(b, b.Elapsed().Seconds()/float64(b.N), 0, 2*float64(s.m*s.n*s.k))
			})
			b.Run("combine/"+s.String(), func(b *testing.B) {
				for b.Loop() {
					k.AttnCombineBF16(o, s.k, p, s.n, h, s.k, s.m, s.n, s.k)
				}
				report(b, b.Elapsed().Seconds()/float64(b.N), 0, 2*float64(s.m*s.n*s.k))
			})
		}
	})
}

func BenchmarkVectors(b *testing.B) {
	const n = 1536
	x, y, z, w := filled(n, someF32...), filled(n, someF32...), filled(n, someF32...), filled(n, someF32...)
	logits := filled(49152, someF32...)
	h := make([]uint16, n)
	for _, k := range Implementations() {
		for _, c := range []struct {
			name string
			f    func()
		}{
			{"SoftmaxExp", func() { k.SoftmaxExp(x, 4) }},
			{"SiluMul", func() { k.SiluMul(x, y, z) }},
			{"SiluMulBackward", func() { k.SiluMulBackward(x, w, y, y, z) }},
			{"SumSquares", func() { k.SumSquares(y) }},
			{"ScaleMul", func() { k.ScaleMul(x, y, 0.5, z) }},
			{"F32ToBF16", func() { k.F32ToBF16(h, y) }},
			{"Rope", func() { k.Rope(x, y[:n/2], z[:n/2]) }},
			{"AdamW", func() { k.AdamW(x, y, w, z, 1e-3, 0.9, 0.999, 1e-8, 0.1, 0.1, 0) }},
			{"ArgMax49152", func() { k.ArgMax(logits) }},
			{"ExpSumMax49152", func() { k.ExpSumMax(logits) }},
		} {
			b.Run(k.Name+"/"+c.name, func(b *testing.B) {
				for b.Loop() {
					c.f()
				}
			})
		}
	}
}
