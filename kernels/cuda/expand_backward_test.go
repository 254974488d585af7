//go:build cuda

package cuda

import (
	"fmt"
	"testing"

	"bhive/kernels"
)

func (p *pair) expandBackward(seqs []seq, out, r int, ranks []int) {
	p.Helper()
	b := p.training(9, seqs...)
	m, n, rows := b.gpu.Bucket.Tokens, b.tokens(), out+7
	table := p.adapters(rows, ranks...)
	gb, cb := table.ref(4, out)
	gl, err := p.gpu.NewLaneTable(len(ranks))
	if err != nil {
		p.Fatal(err)
	}
	cl, err := p.cpu.NewLaneTable(len(ranks))
	if err != nil {
		p.Fatal(err)
	}
	var grads []both
	for i, rank := range ranks {
		g := p.f32(1, rank*rows, p.normal(rank*rows, 1))
		p.gpu.SetLane(p.gpu.s, gl, i, g.gpu, rank, 1.5)
		p.cpu.SetLane(p.cpu.s, cl, i, g.cpu, rank, 1.5)
		grads = append(grads, g)
	}
	dyz, z := p.act(m, out+r, p.ragged(m, n, out+r)), p.working(m, r, p.ragged(m, n, r))
	first := true
	p.repeats("dz", dyz.gpu.RowRange(0, n), func() {
		lanes := kernels.LaneTable(nil) // without lanes there is no gradient
		if first {
			lanes, first = gl, false
		}
		p.gpu.ExpandBackward(p.gpu.s, kernels.ExpandBackwardArgs{DYZ: dyz.gpu, Z: z.gpu, B: gb, Grad: kernels.GradRef{Table: lanes, Offset: 4, Out: out}}, b.gpu)
	})
	p.cpu.ExpandBackward(p.cpu.s, kernels.ExpandBackwardArgs{DYZ: dyz.cpu, Z: z.cpu, B: cb, Grad: kernels.GradRef{Table: cl, Offset: 4, Out: out}}, b.cpu)
	p.same("dyz", dyz, n, max(p.tol(), 1e-4))
	for l, g := range grads {
		p.same(fmt.Sprintf("dB of lane %d", l), g, 1, 2e-4)
	}
	for _, g := range grads { // only now: each run adds to all lanes
		p.repeats("dB", g.gpu, func() {
			p.gpu.ExpandBackward(p.gpu.s, kernels.ExpandBackwardArgs{DYZ: dyz.gpu, Z: z.gpu, B: gb, Grad: kernels.GradRef{Table: gl, Offset: 4, Out: out}}, b.gpu)
		})
	}
}

func TestExpandBackward(t *testing.T) {
	mixes(t, func(p *pair, seqs []seq) {
		p.expandBackward(seqs, 83, 16, testRanks[16])
		p.expandBackward(seqs, 104, 16, testRanks[16])
		p.expandBackward(seqs, 520, 64, []int{64, 16, 33, 40})
	})
}

// Wide outputs take another tile, and an A of more than 64 rows several of them.
func TestExpandBackwardWide(t *testing.T) {
	for _, d := range short([]kernels.DType{kernels.F32, kernels.BF16}, []kernels.DType{kernels.BF16}) {
		t.Run(d.String(), func(t *testing.T) {
			p := newPair(t, Config{Working: d})
			p.expandBackward([]seq{{70, 0, 0}, {1, 0, 1}, {130, 0, 0}, {40, 0, -1}}, 10000, 24, []int{16, 24})
			p.expandBackward([]seq{{70, 0, 0}, {33, 0, 1}}, 136, 136, []int{128, 72})
		})
	}
}
