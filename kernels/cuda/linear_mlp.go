//go:build cuda

package cuda

import (
	"fmt"

	"bhive/kernels"
)

// fusedTokens is the most tokens of a step whose MLP is done in its linear.
var fusedTokens = number("FUSED", 64)

// LinearMLP is Linear and MLP; where a weight is streamed for a few tokens, in one launch.
func (b *Backend) LinearMLP(s kernels.Stream, x kernels.Tensor, w kernels.Weight, a kernels.MLPArgs, step kernels.Step) {
	own, m := w.(*weight), step.Bucket.Tokens
	if !b.fuses(x, own, a, m) {
		b.Linear(s, a.YZ, x, w, step)
		b.MLP(s, a, step)
		return
	}
	ff, k, r := a.Act.Cols, own.in, recordOf(step)
	z := a.YZ.ColRange(2*ff, a.YZ.Cols)
	matrix(a.YZ, kernels.BF16, m, own.rows(), "linear mlp: yz")
	matrix(x, kernels.BF16, m, k, "linear mlp: x")
	table, offset := tableOf(a.B, 2*ff, "linear mlp")
	tokens := 8
	for tokens < m {
		tokens *= 2
	}
	at := uint64(own.at)
	maps := [...]tensorMap{b.tensorMap(at, 2*ff, k, 0, 64), b.tensorMap(at, own.rows(), k, k, 64), b.tensorMap(address(x), m, k, x.Stride, tokens)}
	b.args = b.args[:0]
	for i := range maps {
		b.args = append(b.args, maps[i][:]...)
	}
	partial, arrived := s.(*stream).shares(own.rows() + 4*64)
	b.args = append(b.args, address(a.Act), uint64(a.Act.Stride), address(z), uint64(z.Stride), vector(a.Bias, 2*ff, "linear mlp: bias"), uint64(ff), uint64(k), uint64(own.r),
		uint64(m), r.at(atHead), r.at(atSegStart), r.at(atSegAdapter), uint64(step.Bucket.Seqs), noAdapters(table, own.r), offset, partial, arrived, uint64(skinnyStages(tokens)))
	for len(b.args) < 72 {
		b.args = append(b.args, 0)
	}
	name := fmt.Sprintf("linear_mlp_%d", tokens)
	grid := min((parts(ff, 32)+parts(own.r, 64))*parts(k, 64), b.processors)
	if err := launchValue(b.functions[name], grid, 160, ringShared(tokens), s.(*stream).s, b.args, b.overlap); err != nil {
		b.keep(fmt.Errorf("%s: %w", name, err))
	}
}

// fuses says whether the kernel that does both takes them.
func (b *Backend) fuses(x kernels.Tensor, w *weight, a kernels.MLPArgs, m int) bool {
	if b.config.Working != kernels.BF16 || b.config.BatchInvariant || m > fusedTokens || b.route(m, w.rows(), w.in, false) != bySkinny {
		return false
	}
	return (a.Act.Cols|w.in|w.r|x.Stride|a.Act.Stride|a.YZ.Stride)%8 == 0 && (address(x)|address(a.Act)|address(a.YZ))%16 == 0
}
