package cpu

import (
	"fmt"
	"math"

	"bhive/kernels"
)

// crossEntropyTask holds a chunk of labelled tokens: their hidden states, logits and gradients, gathered.
type crossEntropyTask struct {
	b       *Backend
	nll     []float32
	dh, h   mat
	r       *kernels.Record
	list    []int32 // tokens of the chunk
	logits  []float32
	scratch []float32
	hidden  []float32
	dhidden []float32
	v       int
}

// chunkLogits is how many logits a chunk of tokens may have.
const chunkLogits = 4 << 20

// CrossEntropy: nll[t] = −log p[Label[t]] and dh[t] = Loss[t]·(p − onehot)·E for tokens with a label; zeros for others.
func (b *Backend) CrossEntropy(s kernels.Stream, nll, dh, h, logits kernels.Tensor, head kernels.Weight, step kernels.Step) {
	w := head.(*weight)
	if w.r != 0 || !step.Bucket.Training {
		panic(fmt.Sprintf("cpu: cross entropy: a head with an A of %d rows, or a step without labels", w.r))
	}
	t := step.Bucket.Tokens
	n, d, x := vector(nll, t, "cross entropy: nll"), optional(dh, t, w.in, "cross entropy: dh"), matrix(h, t, w.in, "cross entropy: h")
	at := optional(logits, 1, w.out, "cross entropy: logits")
	if g := recording(s); g != nil {
		g.add(func() { b.runCrossEntropy(n, d, x, at, w, step) })
		return
	}
	b.runCrossEntropy(n, d, x, at, w, step)
}

// LossTokens: what stays in the caches.
func (b *Backend) LossTokens(tokens int, head kernels.Weight) int {
	return min(tokens, max(16, min(128, chunkLogits/head.Out())))
}

func (b *Backend) runCrossEntropy(nll []float32, dh, h, logits mat, w *weight, step kernels.Step) {
	t := &b.crossEntropy
	t.b, t.nll, t.dh, t.h, t.r, t.v = b, nll, dh, h, b.record(step), w.out
	chunk := logits.rows
	if t.logits = logits.at; chunk == 0 {
		chunk = b.LossTokens(step.Bucket.Tokens, w)
		t.logits = grown(&t.scratch, chunk*w.out)
	}
	grown(&t.hidden, chunk*w.in)
	grown(&t.dhidden, chunk*w.in)
	grown(&t.list, chunk)
	n := 0
	for at := range tokens(t.r) {
		if t.r.Label[at] >= 0 {
			t.list[n] = int32(at)
			if n++; n == chunk {
				t.chunk(n, w)
				n = 0
			}
			continue
		}
		nll[at] = 0
		if dh.at != nil {
			clear(dh.row(at))
		}
	}
	t.chunk(n, w)
}

func (t *crossEntropyTask) chunk(n int, w *weight) {
	if n == 0 {
		return
	}
	for i, at := range t.list[:n] {
		copy(t.hidden[i*w.in:], t.h.row(int(at)))
	}
	logits := mat{t.logits, w.out, n, w.out}
	t.b.runLinear(logits, mat{t.hidden, w.in, n, w.in}, w, n)
	t.b.pool.run(taskCrossEntropy, n)
	if t.dh.at == nil {
		return
	}
	t.b.runLinearBackward(mat{t.dhidden, w.in, n, w.in}, logits, w, n, false)
	for i, at := range t.list[:n] {
		copy(t.dh.row(int(at)), t.dhidden[i*w.in:][:w.in])
	}
}

// part turns a token's logits into their gradient.
func (t *crossEntropyTask) part(_, i int) {
	at := t.list[i]
	label := t.r.Label[at]
	x := t.logits[i*t.v:][:t.v]
	of := x[label]
	if t.dh.at == nil {
		t.nll[at] = logSumExp(t.b.k, x) - of
		return
	}
	top := x[t.b.k.ArgMax(x)]
	sum := softmax(t.b.k, x, top)
	t.nll[at] = float32(float64(top)+math.Log(sum)) - of
	loss := kernels.Float(t.r.Loss[at])
	t.b.k.Scale(x, float32(float64(loss)/sum))
	x[label] -= loss
}
