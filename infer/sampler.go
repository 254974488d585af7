package infer

import (
	"slices"
	"unsafe"

	"bhive/kernels"
)

// maskWords is the number of words of a token mask.
func maskWords(vocab int) int { return (vocab + 31) / 32 }

// prepare uploads what sampling remembers of a sequence that was admitted, as far as its parameters use it.
func (d *runner) prepare(q *sequence, eos []int) (keep [][]byte) {
	be, p := d.model.Backend, &q.Params
	up := func(t kernels.Tensor, src []byte) {
		be.Upload(d.stream, t.RowRange(q.row, q.row+1), src)
		keep = append(keep, src)
	}
	if p.penalties() {
		counts := make([]int32, d.vocab)
		for _, t := range q.tokens[len(q.prompt):] {
			counts[t]++
		}
		for _, t := range q.prompt {
			counts[t] |= kernels.SeenInPrompt
		}
		up(d.sampler.Counts, bytesOf(counts))
	}
	if len(p.LogitBias) > 0 {
		ids, bias := make([]int32, kernels.MaxBias), make([]float32, kernels.MaxBias)
		for i := range ids {
			ids[i] = -1
		}
		for i, id := range p.biasIDs() {
			ids[i], bias[i] = int32(id), p.LogitBias[id]
		}
		up(d.sampler.BiasID, bytesOf(ids))
		up(d.sampler.Bias, bytesOf(bias))
	}
	if q.constraint == nil && q.generated() < p.MinTokens {
		up(d.sampler.Mask, bytesOf(q.withoutEnds(nil, d.vocab, eos)))
	}
	return keep
}

// uploadMask uploads what a constraint allows next.
func (d *runner) uploadMask(q *sequence, eos []int) []byte {
	mask := q.mask
	if q.generated() < q.Params.MinTokens {
		if longer := q.withoutEnds(mask, d.vocab, eos); anyBit(longer) { // else the text cannot be longer
			mask = longer
		}
	}
	src := bytesOf(mask)
	d.model.Backend.Upload(d.stream, d.sampler.Mask.RowRange(q.row, q.row+1), src)
	return src
}

// withoutEnds is a copy of a mask (nil: of all tokens) without those that would end the choice.
func (q *sequence) withoutEnds(mask []int32, vocab int, eos []int) []int32 {
	out := make([]int32, maskWords(vocab))
	if mask != nil {
		copy(out, mask)
	} else {
		for id := range vocab {
			out[id/32] |= 1 << (id % 32)
		}
	}
	clear := func(ids []int) {
		for _, id := range ids {
			if id >= 0 && id < vocab {
				out[id/32] &^= 1 << (id % 32)
			}
		}
	}
	if !q.Params.IgnoreEOS {
		clear(eos)
	}
	clear(q.Params.StopTokens)
	return out
}

// constrain asks the constraint what may come next, and reports whether anything may.
func (q *sequence) constrain(vocab int) bool {
	q.mask = make([]int32, maskWords(vocab)) // a new one: a step may still read the last
	q.constraint.Mask(q.mask)
	if tail := vocab % 32; tail > 0 { // bits beyond the vocabulary are no tokens
		q.mask[len(q.mask)-1] &= 1<<tail - 1
	}
	return anyBit(q.mask)
}

// constrain asks the constraints of all choices, and reports whether anything may come in each.
func (w *work) constrain(vocab int) bool {
	for _, q := range w.seqs {
		if !q.constrain(vocab) {
			return false
		}
	}
	return true
}

func anyBit(mask []int32) bool {
	return slices.ContainsFunc(mask, func(w int32) bool { return w != 0 })
}

func floats(w []int32) []float32 {
	return unsafe.Slice((*float32)(unsafe.Pointer(unsafe.SliceData(w))), len(w))
}
