//go:build cuda

package cuda

import (
	"fmt"
	"testing"

	"bhive/kernels"
)

func TestGram(t *testing.T) {
	for _, d := range []kernels.DType{kernels.F32, kernels.BF16} {
		for _, size := range short([][2]int{{1, 167}, {7, 167}, {133, 167}, {1, 8}, {7, 264}, {133, 264}, {989, 576}}, [][2]int{{7, 167}, {1, 8}, {133, 264}}) {
			m, in := size[0], size[1]
			t.Run(fmt.Sprintf("%s/%d/%d", d, m, in), func(t *testing.T) {
				p := newPair(t, Config{Working: d})
				b := p.training(9, seq{m, 0, -1})
				x, c := p.act(m+2, in, p.ragged(m+2, m, in)), p.f32(in, in, p.normal(in*in, 1))
				p.gpu.Gram(p.gpu.s, c.gpu, x.gpu, b.gpu)
				p.cpu.Gram(p.cpu.s, c.cpu, x.cpu, b.cpu)
				p.same("c", c, in, 1e-4)
			})
		}
	}
}
