package infer

import (
	"math/rand/v2"
	"slices"
	"time"

	"bhive/adapters"
)

// work is a submitted request on its way through the engine. Only the engine's goroutine touches it after Submit.
type work struct {
	Request
	order  uint64 // of arrival
	prompt []int32
	stops  []stopString
	root   blockKey // where its prefix-cache keys begin
	lease  *adapters.Lease
	gen    *Generation
	seqs   []*sequence // the choices
	left   int         // choices not done
	forked bool        // the further choices are queued
	at     time.Time   // of Submit
	end    []func()    // stop timers and context watches
}

// slot is the adapter slot of the work's tokens.
func (w *work) slot() int32 {
	if w.lease == nil {
		return adapters.BaseSlot
	}
	return int32(w.lease.Slot())
}

// phase is where a sequence stands.
type phase uint8

const (
	queued  phase = iota // in no list but its work's, or in a queue of the scheduler
	running              // has blocks and a sampler row
	done
)

// sequence is one choice of a request.
type sequence struct {
	*work
	index  int
	phase  phase
	tokens []int32 // prompt and what was generated, as far as it has been read
	limit  int     // most tokens, the prompt's included
	seed   uint64

	computed  int // tokens whose K and V enqueued steps have written
	confirmed int // of those, by steps that have been read
	pending   int // tokens drawn but not read yet; at most 1 when a step is planned
	feed      int // the row of the last of them in its step
	inflight  int // steps enqueued and not read that it is part of
	epoch     int // grows with each preemption: what an older step computed is gone

	table     []int32    // KV blocks
	keys      []blockKey // of the full blocks of tokens
	published int        // blocks whose key was made known
	row       int        // of the sampler state
	prepared  bool       // the row is uploaded

	prompts []TokenInfo // the prompt's logprobs so far
	forced  int         // prompt tokens whose logprob enqueued steps have taken

	out         *output
	constraint  Constraint // nil: none
	mask        []int32    // allowed next, where there is a constraint
	held        bool       // the mask is being found: the next token must not be drawn
	promptShown bool
	counted     bool // no longer among those that wait
	cached      int  // prompt tokens found in the prefix cache at first admission
	preempted   int
	started     time.Time // of the first step
	first       time.Time // of the first token
	last        time.Time
}

// newSequences makes a work's choices. Limit is the most tokens a sequence can have.
func (w *work) newSequences(limit int) {
	p := &w.Params
	seed := rand.Uint64()
	if p.Seed != nil {
		seed = uint64(*p.Seed)
	}
	if p.MaxTokens > 0 {
		limit = min(limit, len(w.prompt)+p.MaxTokens)
	}
	for _, s := range p.Stop {
		w.stops = append(w.stops, newStopString(s))
	}
	for i := range p.N {
		q := &sequence{work: w, index: i, limit: limit, seed: seed + uint64(i), row: -1}
		q.tokens = slices.Clip(w.prompt) // copied with the first token: many choices of a long prompt may wait
		if w.Constrain != nil {
			q.constraint = w.Constrain()
		}
		w.seqs = append(w.seqs, q)
	}
	w.left = p.N
}

// total is the number of tokens, those not read yet included.
func (q *sequence) total() int { return len(q.tokens) + q.pending }

// generated is the number of tokens read beyond the prompt.
func (q *sequence) generated() int { return len(q.tokens) - len(q.prompt) }

// scores reports whether logprobs of the prompt are wanted that no enqueued step takes.
func (q *sequence) scores() bool {
	return q.Params.PromptLogprobs && q.index == 0 && q.forced < len(q.prompt)-1
}

// waits reports whether the next token must not be computed before the last one has been read, or its mask found.
func (q *sequence) waits() bool {
	return q.held || q.pending > 0 && (q.constraint != nil || q.total() >= q.limit)
}

// olderThan orders sequences by arrival.
func (q *sequence) olderThan(o *sequence) bool {
	if q.order != o.order {
		return q.order < o.order
	}
	return q.index < o.index
}

func (q *sequence) usage() Usage {
	return Usage{Prompt: len(q.prompt), Completion: q.generated(), CachedPrompt: q.cached}
}
