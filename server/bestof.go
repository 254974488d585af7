package server

import (
	"cmp"
	"slices"

	"bhive/infer"
)

// maxBestOf is the most texts of which the best are chosen, OpenAI's limit.
const maxBestOf = 20

// bestOf sets p to make as many texts as best_of says, of which n are answered with, and returns n.
func (q *completionRequest) bestOf(p *infer.Params) (int, error) {
	n := p.N
	if q.BestOf == nil || *q.BestOf == n {
		return n, nil
	}
	switch best := *q.BestOf; {
	case best < n:
		return 0, badField("best_of", "best_of: must be at least n = %d, is %d", n, best)
	case best > maxBestOf:
		return 0, badField("best_of", "best_of: must be at most %d, is %d", maxBestOf, best)
	case q.stream():
		return 0, badField("best_of", "best_of: larger than n does not go with stream")
	}
	p.N, p.Logprobs = *q.BestOf, max(p.Logprobs, 0)
	return n, nil
}

// best keeps the n choices of each prompt whose tokens have the highest mean logarithm of probability, best first.
func (c *completion) best(n int) {
	var kept []completionChoice
	for all := range slices.Chunk(c.choices, c.n) {
		slices.SortStableFunc(all, func(a, b completionChoice) int { return cmp.Compare(b.meanLogprob(), a.meanLogprob()) })
		kept = append(kept, all[:n]...)
	}
	for i := range kept {
		kept[i].Index = i
	}
	c.choices = kept
}

func (c *completionChoice) meanLogprob() float64 { return c.sum / float64(max(c.tokens, 1)) }
