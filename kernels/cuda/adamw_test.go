//go:build cuda

package cuda

import (
	"fmt"
	"math"
	"testing"

	"bhive/kernels"
)

func TestAdamW(t *testing.T) {
	for _, d := range []kernels.DType{kernels.F32, kernels.BF16} {
		for _, rank := range short([]int{5, 8, 16, 64}, []int{5, 16}) {
			for _, corrected := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%d/%v", d, rank, corrected), func(t *testing.T) {
					p := newPair(t, Config{Working: d})
					const scaling = 1.5
					var sites []kernels.SiteRows
					rows := 0
					for range 13 { // 39 sites: more than a launch has
						sites = append(sites, kernels.SiteRows{Rows: 700}, kernels.SiteRows{Rows: 37}, kernels.SiteRows{Rows: 600})
						rows += 1337
					}
					n := rows * rank
					master, working, norms := p.f32(1, n, p.normal(n, 1)), p.working(1, n, make([]float32, n)), p.f32(1, 3, nans(3))
					m, v, grad, hyper := p.f32(1, n, make([]float32, n)), p.f32(1, n, make([]float32, n)), p.f32(1, n, make([]float32, n)), p.f32(1, kernels.HyperWords, make([]float32, kernels.HyperWords))
					ga := kernels.AdamWArgs{Lane: 2, Master: master.gpu, M: m.gpu, V: v.gpu, Grad: grad.gpu, Working: working.gpu, Rank: rank, Sites: sites, Norms: norms.gpu, Hyper: hyper.gpu}
					ca := kernels.AdamWArgs{Lane: 2, Master: master.cpu, M: m.cpu, V: v.cpu, Grad: grad.cpu, Working: working.cpu, Rank: rank, Sites: sites, Norms: norms.cpu, Hyper: hyper.cpu}
					if corrected {
						c := p.f32(len(sites)*rank, rank, p.normal(len(sites)*rank*rank, 0.5))
						ga.Correction, ca.Correction = c.gpu, c.cpu
					}
					gl, err := p.gpu.NewLaneTable(3)
					if err != nil {
						t.Fatal(err)
					}
					cl, _ := p.cpu.NewLaneTable(3)
					p.gpu.SetLane(p.gpu.s, gl, 2, grad.gpu, rank, scaling)
					p.cpu.SetLane(p.cpu.s, cl, 2, grad.cpu, rank, scaling)
					for step := 1; step <= 4; step++ {
						h := []float32{1e-2, 0.9, 0.99, 1e-6, 0.1, 20, float32(step), scaling}
						if step == 3 {
							h[kernels.HyperClip] = 0
						}
						g := p.normal(n, 1)
						if step == 2 {
							g[n-1] = float32(math.Inf(1))
						}
						for s, a := range map[*side]kernels.AdamWArgs{p.gpu: ga, p.cpu: ca} {
							s.Upload(s.s, a.Grad, bytesOf(g))
							s.Upload(s.s, a.Hyper, bytesOf(h))
						}
						p.repeats("norms", norms.gpu, func() { p.gpu.GradNorm(p.gpu.s, norms.gpu, gl) })
						p.cpu.GradNorm(p.cpu.s, norms.cpu, cl)
						got, want := p.gpu.values(norms.gpu), p.cpu.values(norms.cpu)
						if got[0] != 0 || got[1] != 0 || step != 2 && math.Abs(float64(got[2]/want[2])-1) > 1e-5 || step == 2 && !math.IsInf(float64(got[2]), 1) {
							t.Fatalf("norms %v, want %v", got, want)
						}
						p.gpu.AdamW(p.gpu.s, ga)
						p.cpu.AdamW(p.cpu.s, ca)
						for i, v := range p.gpu.values(grad.gpu) {
							if v != 0 {
								t.Fatalf("gradient[%d] is %v after the step", i, v)
							}
						}
						// Where a gradient is small beside its rounding, m/√v is not: the first step divides it by itself.
						p.same("B", master, 1, 1e-4)
						p.same("m", m, 1, 1e-4)
						p.same("v", v, 1, 1e-4)
						p.same("working", working, 1, max(1e-4, p.tol()))
					}
				})
			}
		}
	}
}
