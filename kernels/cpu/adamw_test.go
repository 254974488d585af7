package cpu

import (
	"math"
	"testing"

	"bhive/kernels"
)

func TestAdamW(t *testing.T) {
	for _, d := range []kernels.DType{kernels.F32, kernels.BF16} {
		for _, corrected := range []bool{false, true} {
			r := newRig(t, Config{Threads: 2, Working: d})
			const rank, scaling = 8, 1.5
			sites := []kernels.SiteRows{{Rows: 700}, {Rows: 37}, {Rows: 600}}
			n := (700 + 37 + 600) * rank
			lanes, err := r.NewLaneTable(3)
			if err != nil {
				t.Fatal(err)
			}
			a := kernels.AdamWArgs{Lane: 2, Master: r.random(1, n, 1), M: r.alloc(kernels.F32, 1, n), V: r.alloc(kernels.F32, 1, n), Grad: r.alloc(kernels.F32, 1, n),
				Working: r.alloc(d, 1, n), Rank: rank, Sites: sites, Norms: r.garbage(1, 3), Hyper: r.alloc(kernels.F32, 1, kernels.HyperWords)}
			if corrected {
				a.Correction = r.random(3*rank, rank, 1)
			}
			r.SetLane(r.s, lanes, 2, a.Grad, rank, scaling)
			w, m1, v1 := f64(values(a.Master)), make([]float64, n), make([]float64, n)
			hyper := values(a.Hyper)
			copy(hyper, []float32{1e-2, 0.9, 0.99, 1e-6, 0.1, 20, 0, scaling})
			for step := 1; step <= 4; step++ {
				hyper[kernels.HyperStep] = float32(step)
				if step == 3 {
					hyper[kernels.HyperClip] = 0
				}
				copy(values(a.Grad), r.normal(n, 1))
				bad := step == 2
				if bad {
					values(a.Grad)[n-1] = float32(math.Inf(1))
				}
				g := f64(values(a.Grad))
				norm := math.Sqrt(dot64(g, g))
				r.GradNorm(r.s, a.Norms, lanes)
				if got := values(a.Norms); got[0] != 0 || got[1] != 0 || !bad && math.Abs(math.Sqrt(float64(got[2]))/norm-1) > 1e-5 {
					t.Fatalf("norms %v, want %v", got, norm*norm)
				}
				r.AdamW(r.s, a)
				for i, v := range values(a.Grad) {
					if v != 0 {
						t.Fatalf("gradient[%d] is %v after the step", i, v)
					}
				}
				if bad {
					near(t, "B after a bad step", values(a.Master), w, 1e-5)
					continue
				}
				if clip := float64(hyper[kernels.HyperClip]); clip > 0 {
					for i := range g {
						g[i] *= min(1, clip/norm)
					}
				}
				if corrected {
					row := 0
					for s, site := range sites {
						for ; site.Rows > 0; site.Rows-- {
							x := append([]float64(nil), g[row*rank:][:rank]...)
							for j := range rank {
								g[row*rank+j] = 0
								for i := range rank {
									g[row*rank+j] += x[i] * float64(values(a.Correction)[(s*rank+i)*rank+j])
								}
							}
							row++
						}
					}
				}
				size := 1e-2 * math.Sqrt(1-math.Pow(0.99, float64(step))) / (1 - math.Pow(0.9, float64(step)))
				want := make([]float64, n)
				for i := range w {
					m1[i] = 0.9*m1[i] + 0.1*g[i]
					v1[i] = 0.99*v1[i] + 0.01*g[i]*g[i]
					w[i] -= size * m1[i] / (math.Sqrt(v1[i]) + 1e-6)
					w[i] -= 1e-2 * 0.1 * w[i]
					want[i] = scaling * w[i]
				}
				near(t, "B", values(a.Master), w, tol)
				near(t, "working", r.widened(r.workingOf(a.Working, "test"), n), want, map[kernels.DType]float64{kernels.F32: tol, kernels.BF16: 4e-3}[d])
			}
		}
	}
}
