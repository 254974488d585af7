//go:build cuda

package cuda

import (
	"fmt"

	"gorgonia.org/cu"

	"bhive/kernels"
)

// lossBytes is the most memory of the logits that exist at a time.
const lossBytes = 256 << 20

// lossTokens is how many tokens' logits of v exist at a time: whole tiles of a product where it can be.
func lossTokens(v int) int {
	n := lossBytes / (4 * v)
	if n >= 256 {
		return n &^ 127
	}
	return max(16, n)
}

// LossTokens: lossBytes of them.
func (b *Backend) LossTokens(tokens int, head kernels.Weight) int {
	return min(tokens, lossTokens(head.Out()))
}

// CrossEntropy: nll[t] = −log p[Label[t]] and dh[t] = Loss[t]·(p − onehot)·E for tokens of [from, to) with a label; zeros for others.
func (b *Backend) CrossEntropy(s kernels.Stream, nll, dh, h, logits kernels.Tensor, head kernels.Weight, from, to int, step kernels.Step) {
	w, own, m, dt, r := head.(*weight), s.(*stream), step.Bucket.Tokens, b.config.Working, recordOf(step)
	if w.r != 0 || !step.Bucket.Training {
		panic(fmt.Sprintf("cuda: cross entropy: a head with an A of %d rows, or a step without labels", w.r))
	}
	if from < 0 || from > to || to > m {
		panic(fmt.Sprintf("cuda: cross entropy: tokens %d to %d of %d", from, to, m))
	}
	if from == to {
		return
	}
	if !nll.Present() {
		panic("cuda: cross entropy: nll is absent")
	}
	losses := vector(nll, m, "cross entropy: nll")
	optional(dh, dt, m, w.in, "cross entropy: dh")
	matrix(h, dt, m, w.in, "cross entropy: h")
	v, each := w.out, min(to-from, logits.Rows)
	if optional(logits, kernels.F32, 1, v, "cross entropy: logits"); !logits.Contiguous() || address(logits)%16 != 0 {
		panic("cuda: cross entropy: logits with gaps, or off a multiple of 16 bytes") // the gradient takes their place, laid out anew
	}
	if !logits.Present() {
		each = b.LossTokens(to-from, w)
		memory := &buffer{bytes: 4 * int64(each) * int64(v)}
		logits = kernels.Tensor{Buf: memory, DType: kernels.F32, Rows: each, Cols: v, Stride: v}
		memory.at = cu.DevicePtr(own.grow(&own.losses, memory.bytes))
	}
	counts := b.chunkCounts(own, from, to, each, r.at(atHead))
	gradient, lanes, train := logits, 1, uint64(0)
	if dt == kernels.BF16 {
		gradient.DType, gradient.Off, gradient.Stride = kernels.BF16, 2*logits.Off, 2*v
	}
	if v%8 == 0 {
		lanes = 8
	}
	if dh.Present() {
		train = 1
	}
	name := fmt.Sprintf("cross_entropy%d%s", lanes, b.suffix())
	for first := from; first < to; first += each {
		n, count := min(each, to-first), counts+uint64(4*((first-from)/each))
		b.linear(own, logits, h.RowRange(first, first+n), w, n, count)
		b.launch(s, name, n, 1, 1, max(32, min(1024, parts(v, 32*lanes)*32)), 0, address(logits), uint64(v), losses, r.at(atLabel), r.at(atLoss), count, uint64(first), train)
		if train != 0 {
			b.linearBackward(own, dh.RowRange(first, first+n), gradient, w, n, count, false)
		}
	}
}
