//go:build cuda

package cuda

import (
	"fmt"

	"bhive/kernels"
)

// decodeShared is the decode kernel's shared memory: 4 warps, 3 copies under way, 16 keys and values each.
func decodeShared(d int) int { return 4 * 3 * 2 * 16 * d * 2 }

// warpgroupsShared is the shared memory of attention by warpgroups: matrices of 128 rows, tiles of two matrices of 64 rows, in the backward
// with two floats a row, and what brings it all to an address divisible by 1,024.
func warpgroupsShared(d, matrices, tiles int) int {
	return 1024 + matrices*128*d*2 + tiles*(2*64*d*2+1024)
}

// Attention: o[t] = softmax(scale·q[t]·Kᵀ)·V over the visible keys of t's sequence.
func (b *Backend) Attention(s kernels.Stream, a kernels.AttentionArgs, step kernels.Step) {
	c, r, m, dt := a.Cache.(*kvCache), recordOf(step), step.Bucket.Tokens, b.config.Working
	d, kv := c.spec.HeadDim, c.spec.KVHeads
	heads := a.Q.Cols / d
	if heads == 0 || heads*d != a.Q.Cols || heads%kv != 0 {
		panic(fmt.Sprintf("cuda: attention: queries of %d over %d heads of %d", a.Q.Cols, kv, d))
	}
	if d > 256 {
		panic(fmt.Sprintf("cuda: attention: heads of %d values, at most 256", d))
	}
	oa, os := matrix(a.Out, dt, m, heads*d, "attention: out")
	qa, qs := matrix(a.Q, dt, m, heads*d, "attention: q")
	la, ls := optional(a.LSE, kernels.F32, m, heads, "attention: log-sum-exp")
	own := s.(*stream)
	group := heads / kv
	args := []uint64{oa, os, qa, qs, c.k(a.Layer), c.v(a.Layer), uint64(heads), uint64(kv), uint64(d), uint64(c.spec.BlockTokens),
		uint64(step.Bucket.Blocks), float(float64(a.Scale)), uint64(a.Window), la, ls, r.at(atBlockTable), r.at(atPosition), r.at(atSeq), r.at(atQueryStart), r.at(atHead),
		0, 0}
	launch := func(name string, gx, gy, gz, threads int) {
		b.launch(s, name, gx, gy, gz, threads, functionShared[name], args...)
	}
	tensor := dt == kernels.BF16 && (d == 128 || d == 64) && group <= 16 && qs%8 == 0 && os%2 == 0
	switch {
	case !tensor:
		launch("attention_plain"+b.suffix(), parts(m*heads, 4), 1, 1, 128)
	case step.Bucket.MaxQuery == 1 && !b.config.BatchInvariant: // the prefill kernel has one order for every batch
		seqs, longest := step.Bucket.Seqs, step.Bucket.Blocks*c.spec.BlockTokens
		splits := max(1, min(2*b.processors/(seqs*kv), parts(longest, 64)))
		if splits > 1 {
			args[len(args)-2] = own.grow(&own.splits, int64(seqs)*int64(kv)*int64(splits)*16*int64(d+2)*4)
			args[len(args)-1] = own.grow(&own.joined, int64(seqs)*int64(kv)*4)
		}
		launch(fmt.Sprintf("decode%d_bf16", d), splits, kv, seqs, 128)
	case b.warpgroups && !b.config.BatchInvariant && step.Bucket.MaxQuery*group > 64:
		launch(fmt.Sprintf("prefill%d_warpgroups", d), kv, parts(m, 128/group)+step.Bucket.Seqs, 1, 256)
	default:
		launch(fmt.Sprintf("prefill%d_bf16", d), kv, parts(m, 64/group)+step.Bucket.Seqs, 1, 128)
	}
}
