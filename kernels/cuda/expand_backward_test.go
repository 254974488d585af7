//go:build cuda

package cuda

import (
	"fmt"
	"testing"

	"bhive/kernels"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
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
	p.expandInPlace(dyz.gpu, z.gpu, gb, gl, grads, b)
	for _, g := range grads { // only now: each run adds to all lanes
		p.repeats("dB", g.gpu, func() {
			p.gpu.ExpandBackward(p.gpu.s, kernels.ExpandBackwardArgs{DYZ: dyz.gpu, Z: z.gpu, B: gb, Grad: kernels.GradRef{Table: gl, Offset: 4, Out: out}}, b.gpu)
		})
	}
}

// expandInPlace: with z in the place of dz everything comes out the same. dyz is what a run has left.
func (p *pair) expandInPlace(dyz, z kernels.Tensor, ref kernels.BRef, lanes kernels.LaneTable, grads []both, b *batch) {
	p.Helper()
	m, n, cols := dyz.Rows, b.tokens(), dyz.Cols
	place, err := p.gpu.Alloc(dyz.DType, m, cols)
	if err != nil {
		p.Fatal(err)
	}
	defer p.gpu.Free(place)
	run := func(dyz, z kernels.Tensor) (dz []float32, sums [][]float32) {
		for _, g := range grads {
			p.gpu.Zero(p.gpu.s, g.gpu)
		}
		p.gpu.ExpandBackward(p.gpu.s, kernels.ExpandBackwardArgs{DYZ: dyz, Z: z, B: ref, Grad: kernels.GradRef{Table: lanes, Offset: 4, Out: ref.Out}}, b.gpu)
		for _, g := range grads {
			sums = append(sums, p.gpu.values(g.gpu))
		}
		return p.gpu.values(dyz.RowRange(0, n)), sums
	}
	p.gpu.Copy(p.gpu.s, place, dyz)
	p.gpu.Copy(p.gpu.s, place.ColRange(ref.Out, cols), z)
	dz, sums := run(dyz, z)
	dzs, same := run(place, place.ColRange(ref.Out, cols))
	if d := cmp.Diff(dz, dzs); d != "" {
		p.Errorf("dz in the place of z (-apart +in place):\n%s", d)
	}
	if d := cmp.Diff(sums, same, cmpopts.EquateApprox(0, 2e-4)); d != "" { // another kernel, where z is not aligned
		p.Errorf("dB with z in the place of dz (-apart +in place):\n%s", d)
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
