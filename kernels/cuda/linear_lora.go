//go:build cuda

package cuda

import (
	"fmt"

	"bhive/kernels"
)

// fusedTokens is the most tokens of a step whose linears add B·z themselves.
var fusedTokens = number("FUSED", 64)

// fusedZ is the most blocks that share A, as linear_lora.cu has it, and fusedRanks the most rows of A.
const fusedZ, fusedRanks = 32, 64

// LinearB is Linear; where a weight is streamed for a few tokens it adds B·z.
func (b *Backend) LinearB(s kernels.Stream, yz, x kernels.Tensor, w kernels.Weight, ref kernels.BRef, step kernels.Step) bool {
	own, m := w.(*weight), step.Bucket.Tokens
	if ref.Table == nil || own.r == 0 || !b.fuses(x, yz, own, m) {
		b.Linear(s, yz, x, w, step)
		return false
	}
	b.linearLora(s.(*stream), "linear_lora", yz, x, own, 0, ref, step)
	return true
}

// LinearMLP is Linear and MLP; where a weight is streamed for a few tokens, in one launch.
func (b *Backend) LinearMLP(s kernels.Stream, x kernels.Tensor, w kernels.Weight, a kernels.MLPArgs, step kernels.Step) {
	own, m := w.(*weight), step.Bucket.Tokens
	if own.out%16 != 0 || !b.fuses(x, a.Act, own, m) {
		b.Linear(s, a.YZ, x, w, step)
		b.MLP(s, a, step)
		return
	}
	b.linearLora(s.(*stream), "linear_mlp", a.Act, x, own, vector(a.Bias, own.out, "linear mlp: bias"), a.B, step)
}

// fuses says whether linear_lora.cu takes them.
func (b *Backend) fuses(x, y kernels.Tensor, w *weight, m int) bool {
	if b.config.Working != kernels.BF16 || b.config.BatchInvariant || m > fusedTokens || w.r > fusedRanks || b.route(m, w.rows(), w.in, false) != bySkinny {
		return false
	}
	return (w.out|w.in|w.r|x.Stride|y.Stride)%8 == 0 && (address(x)|address(y))%16 == 0 && b.fusedGrid(w) > 0
}

// fusedGrid is how many blocks share a weight; 0: it is too small for each to have more of W than of A.
func (b *Backend) fusedGrid(w *weight) int {
	chunks, grid := parts(w.in, 64), b.processors
	if (parts(w.out, 64)+1)*chunks/grid < parts(chunks, min(fusedZ, chunks, grid))+2 {
		return 0
	}
	return grid
}

func (b *Backend) linearLora(s *stream, name string, y, x kernels.Tensor, w *weight, bias uint64, ref kernels.BRef, step kernels.Step) {
	n, k, m, r := w.out, w.in, step.Bucket.Tokens, recordOf(step)
	cols := n
	if name == "linear_mlp" {
		cols /= 2
	}
	ya, ys := matrix(y.ColRange(0, cols), kernels.BF16, m, cols, name+": y")
	xa, xs := matrix(x, kernels.BF16, m, k, name+": x")
	table, offset := tableOf(ref, n, name)
	tokens := 8
	for tokens < m {
		tokens *= 2
	}
	at := uint64(w.at)
	all := b.tensorMap(at, w.rows(), k, k, 64)
	maps := [...]tensorMap{all, all, b.tensorMap(xa, m, k, int(xs), tokens)}
	if name == "linear_mlp" {
		maps[0] = b.tensorMap(at, n, k, 0, 64)
	}
	b.args = b.args[:0]
	for i := range maps {
		b.args = append(b.args, maps[i][:]...)
	}
	partial, arrived := s.shares(n + 2*64)
	z := s.grow(&s.z, int64(fusedZ*tokens*fusedRanks*4+tokens*fusedRanks*2))
	b.args = append(b.args, ya, ys, bias, uint64(n), uint64(k), uint64(w.r), uint64(m), r.at(atHead), r.at(atSegStart), r.at(atSegAdapter), uint64(step.Bucket.Seqs),
		noAdapters(table, w.r), offset, partial, z, z+uint64(fusedZ*tokens*fusedRanks*4), arrived, uint64(skinnyStages(tokens)))
	for len(b.args) < 72 {
		b.args = append(b.args, 0)
	}
	name = fmt.Sprintf("%s_%d", name, tokens)
	if err := launchValue(b.functions[name], b.fusedGrid(w), 192, ringShared(tokens), s.s, b.args, b.overlap); err != nil {
		b.keep(fmt.Errorf("%s: %w", name, err))
	}
}
