package cpu

import (
	"fmt"
	"testing"

	"bhive/kernels"
)

func TestLinear(t *testing.T) {
	for _, d := range []kernels.DType{kernels.F32, kernels.BF16} {
		for _, f := range []kernels.Format{kernels.FormatF32, kernels.FormatBF16, kernels.FormatInt8} {
			for _, m := range []int{1, 7, 133} {
				t.Run(fmt.Sprintf("%s/%s/%d", d, f, m), func(t *testing.T) {
					r := newRig(t, Config{Threads: 2, Working: d})
					w := r.weight(83, 45, 11, f)
					b := r.step(9, seq{n: m, adapter: -1, lane: -1})
					x := r.random(m+2, 45, 1)
					yz := r.garbage(m+2, 94)
					r.Linear(r.s, yz, x, w, b.step)
					wide := r.wide(w)
					for i := range m {
						want := make([]float64, 94)
						for j := range want {
							want[j] = dot64(f64(values(x)[i*45:][:45]), wide[j])
						}
						got := values(yz)[i*94:][:94]
						near(t, "y", got[:83], want[:83], tol)
						z := append([]float32(nil), got[83:]...)
						near(t, "z", z, want[83:], map[kernels.DType]float64{kernels.F32: tol, kernels.BF16: 5e-3}[d])
						if d == kernels.BF16 {
							r.k.RoundBF16InPlace(z)
						}
						for j, v := range z {
							if v != got[83+j] {
								t.Fatalf("z is not rounded: %v", got[83+j])
							}
						}
					}
					if v := values(yz)[m*94]; v == v {
						t.Fatal("a row past the counts is written")
					}
				})
			}
		}
	}
}
