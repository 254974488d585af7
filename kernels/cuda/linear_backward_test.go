//go:build cuda

package cuda

import (
	"fmt"
	"testing"
)

func TestLinearBackward(t *testing.T) {
	for _, c := range trainingConfigs {
		for _, shape := range short([][3]int{{83, 45, 11}, {88, 48, 8}, {300, 200, 20}, {1000, 576, 64}, {4096, 136, 0}}, [][3]int{{83, 45, 11}, {88, 48, 8}, {300, 200, 20}}) {
			for _, m := range short([]int{1, 7, 133, 300}, []int{7, 133}) {
				for _, accumulate := range []bool{false, true} {
					t.Run(fmt.Sprintf("%s/invariant=%v/%v/%d/%v", c.Working, c.BatchInvariant, shape, m, accumulate), func(t *testing.T) {
						p := newPair(t, c)
						out, in, r := shape[0], shape[1], shape[2]
						w := p.weight(out, in, r)
						b := p.step(9, seq{m, 0, -1})
						dyz := p.act(m+2, out+r, p.ragged(m+2, m, out+r))
						dx := p.act(m+2, in, p.ragged(m+2, m, in))
						p.repeats("dx", dx.gpu.RowRange(0, m), func() { p.gpu.LinearBackward(p.gpu.s, dx.gpu, dyz.gpu, w.gpu, accumulate, b.gpu) })
						p.cpu.LinearBackward(p.cpu.s, dx.cpu, dyz.cpu, w.cpu, accumulate, b.cpu)
						p.sameRows("dx", dx, m, max(p.tol(), 2e-4))
					})
				}
			}
		}
	}
}
