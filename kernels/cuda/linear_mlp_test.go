//go:build cuda

package cuda

import (
	"fmt"
	"testing"

	"bhive/kernels"
)

// TestLinearMLP: the MLP's linear with its epilogue against the oracle, by popularities and ranks; a second launch finds the counters as the first left them.
func TestLinearMLP(t *testing.T) {
	for _, shape := range short([][2]int{{264, 136}, {4104, 512}, {1032, 4096}}, [][2]int{{264, 136}, {1032, 512}}) {
		for _, n := range short([]int{1, 7, 14, 30, 62}, []int{7, 62}) {
			for i, pop := range decodePopularities {
				t.Run(fmt.Sprintf("%v/%d/%s", shape, n, pop.name), func(t *testing.T) {
					p := newPair(t, Config{Working: kernels.BF16})
					be := p.gpu.Backend.(*Backend)
					if !be.hopper {
						t.Skip("the kernel is for Hopper")
					}
					ff, k := shape[0], shape[1]
					b := p.step(9, decodes(n, func(i int) int { return pop.slot(i, n) })...)
					m := b.gpu.Bucket.Tokens
					w, table := p.weight(2*ff, k, decodeR), p.adapters(3+2*ff, decodeRanks...)
					x := p.act(m, k, append(p.normal(n*k, 0.3), make([]float32, (m-n)*k)...))
					bias := both{}
					if i%2 == 0 {
						bias = p.f32(1, 2*ff, p.normal(2*ff, 1))
					}
					yz := p.garbage(m, 2*ff+decodeR)
					gb, cb := table.ref(3, 2*ff)
					want := p.garbage(m, ff)
					p.cpu.LinearMLP(p.cpu.s, x.cpu, w.cpu, kernels.MLPArgs{Act: want.cpu, YZ: yz.cpu, Bias: bias.cpu, B: cb}, b.cpu)
					skinny := bySkinny
					be.only = &skinny
					defer func() { be.only = nil }()
					args := kernels.MLPArgs{YZ: yz.gpu, Bias: bias.gpu, B: gb}
					args.Act = want.gpu
					if !be.fuses(x.gpu, w.gpu.(*weight), args, m) {
						t.Fatal("not in one launch")
					}
					var first []float32
					for range 2 {
						act := p.garbage(m, ff)
						args.Act = act.gpu
						p.gpu.LinearMLP(p.gpu.s, x.gpu, w.gpu, args, b.gpu)
						p.same("act", both{act.gpu, want.cpu}, n, p.tol())
						p.sameRows("z", both{yz.gpu.ColRange(2*ff, 2*ff+decodeR), yz.cpu.ColRange(2*ff, 2*ff+decodeR)}, n, p.tol())
						got := p.gpu.values(act.gpu)
						for j, v := range first {
							if v != got[j] && j < n*ff {
								t.Fatalf("act[%d] is %v, and %v again", j, v, got[j])
							}
						}
						first = got
					}
				})
			}
		}
	}
}
