//go:build cuda

package cuda

import "bhive/kernels"

// linearBackwardShared is the tile kernel's shared memory: 4 stages of 128 tokens by 32 rows of w, and those by 128 columns.
const linearBackwardShared = 4 * (128*64 + 32*256)

// LinearBackward: dx[t] = dyz[t]·[W; A], or dx[t] += with accumulate.
func (b *Backend) LinearBackward(s kernels.Stream, dx, dyz kernels.Tensor, w kernels.Weight, accumulate bool, step kernels.Step) {
	own, m, dt := w.(*weight), step.Bucket.Tokens, b.config.Working
	matrix(dx, dt, m, own.in, "linear backward: dx")
	matrix(dyz, dt, m, own.rows(), "linear backward: dyz")
	b.linearBackward(s.(*stream), dx, dyz, own, m, recordOf(step).head(kernels.HeadTokens), accumulate)
}

// linearBackward multiplies the first rows of dyz, m at most; how many stands at count.
func (b *Backend) linearBackward(s *stream, dx, dyz kernels.Tensor, w *weight, m int, count uint64, accumulate bool) {
	n, k := w.rows(), w.in
	name, each, shared, add, beta := "linear_backward_plain"+b.suffix(), 64, 0, uint64(0), float32(0)
	if accumulate {
		add, beta = 1, 1
	}
	if b.config.Working == kernels.BF16 && (n|k|dx.Stride|dyz.Stride)%8 == 0 && (address(dx)|address(dyz))%16 == 0 {
		key := ltKey{n: k, m: m, k: n, ldx: dyz.Stride, ldy: dx.Stride, back: true}
		if b.lt == "" && b.multiplyLt(s, key, uint64(w.at), address(dyz), address(dx), beta) {
			return
		}
		name, each, shared = "linear_backward_bf16", 128, linearBackwardShared
	}
	b.launch(s, name, parts(k, each), parts(m, each), 1, 256, shared,
		address(dx), uint64(dx.Stride), address(dyz), uint64(dyz.Stride), uint64(w.at), uint64(n), uint64(k), count, add)
}
