//go:build cuda

package cuda

import (
	"fmt"
	"testing"

	"bhive/kernels"
)

// TestLinearLora: linears that add B·z, and the MLP's with its epilogue, against the oracle, by popularities and ranks; a second launch finds the counters as the
// first left them.
func TestLinearLora(t *testing.T) {
	for _, shape := range short([][2]int{{8464, 136}, {8208, 512}, {2064, 4096}}, [][2]int{{8464, 136}, {2064, 4096}}) {
		for _, n := range short([]int{1, 7, 14, 30, 62}, []int{7, 62}) {
			for i, pop := range decodePopularities {
				t.Run(fmt.Sprintf("%v/%d/%s", shape, n, pop.name), func(t *testing.T) {
					p := newPair(t, Config{Working: kernels.BF16})
					be := p.gpu.Backend.(*Backend)
					if !be.hopper {
						t.Skip("the kernels are for Hopper")
					}
					out, k := shape[0], shape[1]
					b := p.step(9, decodes(n, func(i int) int { return pop.slot(i, n) })...)
					m := b.gpu.Bucket.Tokens
					w, table := p.weight(out, k, decodeR), p.adapters(3+out, decodeRanks...)
					x := p.act(m, k, append(p.normal(n*k, 0.3), make([]float32, (m-n)*k)...))
					bias, yz, act := both{}, p.garbage(m, out+decodeR), p.garbage(m, out/2)
					if i%2 == 0 {
						bias = p.f32(1, out, p.normal(out, 1))
					}
					gb, cb := table.ref(3, out)
					p.cpu.LinearMLP(p.cpu.s, x.cpu, w.cpu, kernels.MLPArgs{Act: act.cpu, YZ: yz.cpu, Bias: bias.cpu, B: cb}, b.cpu)
					skinny := bySkinny
					be.only = &skinny
					defer func() { be.only = nil }()
					own, _ := w.gpu.(*weight)
					if !be.fuses(x.gpu, act.gpu, own, m) {
						t.Fatal("not in one launch")
					}
					var first []float32
					for range 2 {
						act.gpu = p.garbage(m, out/2).gpu
						p.gpu.LinearMLP(p.gpu.s, x.gpu, w.gpu, kernels.MLPArgs{Act: act.gpu, YZ: yz.gpu, Bias: bias.gpu, B: gb}, b.gpu)
						p.same("act", act, n, p.tol())
						got := p.gpu.values(act.gpu)
						for j := range n * out / 2 {
							if first != nil && first[j] != got[j] {
								t.Fatalf("act[%d] is %v, and %v again", j, first[j], got[j])
							}
						}
						first = got
					}

					// B·z alone is what the MLP of the oracle adds to g and u, which it keeps where it is asked to.
					yz.cpu = p.garbage(m, out+decodeR).cpu
					sum := p.garbage(m, out)
					p.cpu.LinearMLP(p.cpu.s, x.cpu, w.cpu, kernels.MLPArgs{Act: act.cpu, YZ: yz.cpu, B: cb, GateUp: sum.cpu}, b.cpu)
					for range 2 {
						yz.gpu = p.garbage(m, out+decodeR).gpu
						if !p.gpu.LinearB(p.gpu.s, yz.gpu, x.gpu, w.gpu, gb, b.gpu) {
							t.Fatal("not with B")
						}
						p.sameRows("y", both{yz.gpu.ColRange(0, out), sum.cpu}, n, p.tol())
					}
				})
			}
		}
	}
}
