//go:build cuda

package cuda

import (
	"fmt"

	"bhive/kernels"
)

// keysShared is the shared memory of the kernel of dk and dv: K and V, and twice Q, dO and two floats a row, of 64 rows.
func keysShared(d int) int { return 2*64*d*2 + 2*(2*64*d*2+64*8) }

// AttentionBackward: the gradients of Attention by q, k and v, k and v of the step's own tokens.
func (b *Backend) AttentionBackward(s kernels.Stream, a kernels.AttentionBackwardArgs, step kernels.Step) {
	c, r, m, dt := a.Cache.(*kvCache), recordOf(step), step.Bucket.Tokens, b.config.Working
	d, kv := c.spec.HeadDim, c.spec.KVHeads
	heads := a.Q.Cols / d
	if heads == 0 || heads*d != a.Q.Cols || heads%kv != 0 {
		panic(fmt.Sprintf("cuda: attention backward: queries of %d over %d heads of %d", a.Q.Cols, kv, d))
	}
	dq, dqs := matrix(a.DQ, dt, m, heads*d, "attention backward: dq")
	dk, dks := matrix(a.DK, dt, m, kv*d, "attention backward: dk")
	dv, dvs := matrix(a.DV, dt, m, kv*d, "attention backward: dv")
	do, dos := matrix(a.DO, dt, m, heads*d, "attention backward: do")
	oa, os := matrix(a.O, dt, m, heads*d, "attention backward: o")
	qa, qs := matrix(a.Q, dt, m, heads*d, "attention backward: q")
	la, ls := matrix(a.LSE, kernels.F32, m, heads, "attention backward: log-sum-exp")
	own, ldr := s.(*stream), (m+1)&^1
	rows := own.grow(&own.rows, int64(heads)*int64(ldr)*8)
	launch := func(name string, gx, gy, threads int) {
		b.launch(s, name, gx, gy, 1, threads, functionShared[name], dq, dqs, dk, dks, dv, dvs, do, dos, oa, os, qa, qs, la, ls, c.k(a.Layer), c.v(a.Layer),
			uint64(heads), uint64(kv), uint64(d), uint64(c.spec.BlockTokens), uint64(step.Bucket.Blocks), float(float64(a.Scale)), uint64(a.Window), rows, uint64(ldr),
			r.at(atBlockTable), r.at(atPosition), r.at(atKVSlot), r.at(atSeq), r.at(atQueryStart), r.at(atHead))
	}
	group := heads / kv
	if dt == kernels.BF16 && (d == 128 || d == 64) && group <= 16 && (qs|dos)%8 == 0 && (qa|do)%16 == 0 && (os|dqs|dks|dvs)%2 == 0 && (oa|dq|dk|dv)%4 == 0 {
		if b.warpgroups {
			launch(fmt.Sprintf("attention_backward_q%d_warpgroups", d), kv, parts(m, 128/group)+step.Bucket.Seqs, 256)
			launch(fmt.Sprintf("attention_backward_kv%d_warpgroups", d), kv, parts(m, 128)+step.Bucket.Seqs, 256)
			return
		}
		launch(fmt.Sprintf("attention_backward_q%d_bf16", d), kv, parts(m, 64/group)+step.Bucket.Seqs, 128)
		launch(fmt.Sprintf("attention_backward_kv%d_bf16", d), kv, parts(m, 64)+step.Bucket.Seqs, 128)
		return
	}
	launch("attention_backward_plain_q"+b.suffix(), parts(m*heads, 4), 1, 128)
	launch("attention_backward_plain_kv"+b.suffix(), parts(m*kv, 4), 1, 128)
}
