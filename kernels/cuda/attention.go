//go:build cuda

package cuda

import (
	"fmt"

	"bhive/kernels"
)

// Limits of the decode kernel: query heads of a KV head, and sequences.
const decodeGroup, decodeSeqs = 8, 1024

// mostHead is the most values of a head that attention has a kernel for.
const mostHead = 256

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
	oa, os := matrix(a.Out, dt, m, heads*d, "attention: out")
	qa, qs := matrix(a.Q, dt, m, heads*d, "attention: q")
	la, ls := optional(a.LSE, kernels.F32, m, heads, "attention: log-sum-exp")
	own := s.(*stream)
	group := heads / kv
	tensor := dt == kernels.BF16 && (d == 128 || d == 64) && group <= 16 && qs%8 == 0 && os%2 == 0 && qa%16 == 0 && oa%4 == 0
	decode := tensor && step.Bucket.MaxQuery == 1 && !b.config.BatchInvariant && la == 0 && // the prefill kernel has one order for every batch
		group <= decodeGroup && step.Bucket.Seqs <= decodeSeqs && c.spec.BlockTokens%16 == 0 && os%8 == 0 && oa%16 == 0
	if decode {
		seqs, each := step.Bucket.Seqs, 3 // blocks of a multiprocessor
		if b.decodeBlocks > 0 {
			each = b.decodeBlocks
		}
		runs := max(1, min(each*b.processors/kv, seqs*parts(step.Bucket.Blocks*c.spec.BlockTokens, 64)))
		partial := own.grow(&own.splits, int64(2*runs*kv*group*(d+2)*4))
		arrived := own.grow(&own.joined, int64(seqs*kv*4))
		b.launch(s, fmt.Sprintf("attention_decode_%d", d), runs*kv, 1, 1, 128, 32*group*d, oa, os, qa, qs, c.k(a.Layer), c.v(a.Layer), float(float64(a.Scale)), uint64(a.Window),
			uint64(heads), uint64(kv), uint64(c.spec.BlockTokens), uint64(step.Bucket.Blocks), r.at(atHead), r.at(atQueryStart), r.at(atContext), r.at(atBlockTable), partial, arrived)
		return
	}
	name, gx, gy, threads := "attention_plain"+b.suffix(), parts(m*heads, 4), 1, 128
	switch {
	case !tensor:
	case b.warpgroups && !b.config.BatchInvariant && step.Bucket.MaxQuery*group > 64:
		name = fmt.Sprintf("prefill%d_warpgroups", d)
		gx, gy, threads = kv, parts(m, 128/group)+step.Bucket.Seqs, 256
	default:
		name = fmt.Sprintf("prefill%d_bf16", d)
		gx, gy = kv, parts(m, 64/group)+step.Bucket.Seqs
	}
	b.launch(s, name, gx, gy, 1, threads, functionShared[name], oa, os, qa, qs, c.k(a.Layer), c.v(a.Layer), uint64(heads), uint64(kv), uint64(d), uint64(c.spec.BlockTokens),
		uint64(step.Bucket.Blocks), float(float64(a.Scale)), uint64(a.Window), la, ls, r.at(atBlockTable), r.at(atPosition), r.at(atSeq), r.at(atQueryStart), r.at(atHead))
}
