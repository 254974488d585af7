package infer

import (
	"cmp"
	"slices"

	"bhive/kernels"
)

// fill writes a plan into a record. Sequences of one adapter slot come together, so that segments are few; the plan's items are
// reordered for that and their rows assigned.
func fill(r *kernels.Record, p *plan, blockTokens int) {
	slices.SortStableFunc(p.items, func(a, b item) int { return cmp.Compare(a.slot(), b.slot()) })
	token, row, segs := 0, 0, 0
	for i := range p.items {
		it := &p.items[i]
		q := it.sequence
		slot := q.slot()
		it.row = row
		r.QueryStart[i], r.Context[i] = int32(token), int32(it.from+it.n)
		copy(r.BlockTable[i*r.Bucket.Blocks:(i+1)*r.Bucket.Blocks], q.table)
		if segs == 0 || r.SegAdapter[segs-1] != slot {
			r.SegStart[segs], r.SegAdapter[segs], r.SegLane[segs] = int32(token), slot, -1
			segs++
		}
		for j := range it.n {
			pos := it.from + j
			r.Feed[token+j] = -1
			if pos < len(q.tokens) {
				r.Token[token+j] = q.tokens[pos]
			} else {
				r.Token[token+j], r.Feed[token+j] = 0, int32(q.feed)
			}
			r.Position[token+j] = int32(pos)
			r.KVSlot[token+j] = q.table[pos/blockTokens]*int32(blockTokens) + int32(pos%blockTokens)
			r.Seq[token+j], r.Adapter[token+j] = int32(i), slot
		}
		for j := range it.score {
			at := it.scoreAt + j
			r.RowToken[row] = int32(token + at - it.from)
			q.scoreRow(r, row, q.tokens[at+1])
			row++
		}
		token += it.n
		if it.draw {
			r.RowToken[row] = int32(token - 1)
			q.drawRow(r, row, it.from+it.n)
			row++
		}
	}
	r.QueryStart[len(p.items)], r.SegStart[segs] = int32(token), int32(token)
	r.Head[kernels.HeadTokens], r.Head[kernels.HeadSeqs] = int32(token), int32(len(p.items))
	r.Head[kernels.HeadRows], r.Head[kernels.HeadSegs] = int32(row), int32(segs)
}

// drawRow asks for the token at a position of the sequence.
func (q *sequence) drawRow(r *kernels.Record, row, position int) {
	p := &q.Params
	flags := int32(0)
	if p.greedy() {
		flags |= kernels.RowGreedy
	}
	if p.penalties() {
		flags |= kernels.RowPenalties
	}
	if len(p.LogitBias) > 0 {
		flags |= kernels.RowBias
	}
	if q.constraint != nil || position-len(q.prompt) < p.MinTokens {
		flags |= kernels.RowMask
	}
	r.RowFlags[row], r.RowSampler[row], r.RowForced[row] = flags, int32(q.row), -1
	r.RowTopK[row], r.RowTop[row] = int32(max(p.TopK, 0)), int32(max(p.Logprobs, 0))
	r.RowSeedLo[row], r.RowSeedHi[row], r.RowDraw[row] = int32(uint32(q.seed)), int32(uint32(q.seed>>32)), int32(position)
	r.RowTemperature[row] = kernels.Bits(max(p.Temperature, 1e-5))
	r.RowTopP[row], r.RowMinP[row] = kernels.Bits(p.TopP), kernels.Bits(p.MinP)
	r.RowRepetition[row] = kernels.Bits(p.RepetitionPenalty)
	r.RowPresence[row], r.RowFrequency[row] = kernels.Bits(p.PresencePenalty), kernels.Bits(p.FrequencyPenalty)
}

// scoreRow asks for the logprob of a token of the prompt.
func (q *sequence) scoreRow(r *kernels.Record, row int, token int32) {
	r.RowFlags[row], r.RowSampler[row], r.RowForced[row] = kernels.RowGreedy, int32(q.row), token
	r.RowTopK[row], r.RowTop[row] = 0, int32(max(q.Params.Logprobs, 0))
	r.RowSeedLo[row], r.RowSeedHi[row], r.RowDraw[row] = 0, 0, 0
	r.RowTemperature[row], r.RowTopP[row], r.RowMinP[row] = kernels.Bits(1), kernels.Bits(1), 0
	r.RowRepetition[row], r.RowPresence[row], r.RowFrequency[row] = kernels.Bits(1), 0, 0
}
