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
	w := recordWriter{r: r, blockTokens: blockTokens}
	for i := range p.items {
		it := &p.items[i]
		q := it.sequence
		it.row = w.rows
		w.begin(it.from, it.n, q.table, int(q.slot()), -1)
		read := min(max(len(q.tokens)-it.from, 0), it.n)
		for _, id := range q.tokens[it.from : it.from+read] {
			w.token(id, -1)
		}
		for range it.n - read {
			w.token(0, int32(q.feed))
		}
		for j := range it.score {
			at := it.scoreAt + j
			row := q.scoreRow(at-it.from, q.tokens[at+1])
			w.row(&row)
		}
		if it.draw {
			row := q.drawRow(it.n-1, it.from+it.n)
			w.row(&row)
		}
	}
	w.end()
}

// drawRow asks for the token at a position of the sequence, after one of the step's tokens.
func (q *sequence) drawRow(token, position int) Row {
	p := &q.Params
	flags := 0
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
	return Row{Token: token, Sampler: q.row, Forced: -1, Flags: flags, TopK: max(p.TopK, 0), Top: max(p.Logprobs, 0), Seed: int64(q.seed),
		Draw: position, Temperature: max(p.Temperature, 1e-5), TopP: p.TopP, MinP: p.MinP, Repetition: p.RepetitionPenalty,
		Presence: p.PresencePenalty, Frequency: p.FrequencyPenalty}
}

// scoreRow asks for the logprob of a token of the prompt, after one of the step's tokens.
func (q *sequence) scoreRow(token int, next int32) Row {
	row := GreedyRow(token)
	row.Sampler, row.Forced, row.Top = q.row, int(next), max(q.Params.Logprobs, 0)
	return row
}
