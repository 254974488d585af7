package infer

import (
	"fmt"
	"math"
	"sort"

	"bhive/kernels"
)

// Params says how tokens are chosen and when a choice ends. DefaultParams gives the neutral values; the zero Params is not valid.
// Field names in errors are those of the OpenAI and vLLM requests.
type Params struct {
	MaxTokens int // tokens to generate at most, a choice; 0: as many as fit in the context
	MinTokens int // before so many tokens no end-of-text, stop token or stop string ends a choice

	Temperature       float32 // ≥ 0; 0: greedy
	TopK              int     // 0 or −1: all
	TopP              float32 // (0, 1]
	MinP              float32 // [0, 1]
	RepetitionPenalty float32 // (0, 2]; 1: off
	PresencePenalty   float32 // [−2, 2]
	FrequencyPenalty  float32 // [−2, 2]
	LogitBias         map[int]float32

	Seed *int64 // nil: random. Choice i draws with Seed+i
	N    int    // choices, 1 … 128

	Stop        []string // end a choice; not part of its text unless IncludeStop
	StopTokens  []int    // end a choice; not part of its text unless IncludeStop. At most 1024: each token drawn is looked up among them
	IncludeStop bool     // what ends a choice stays in the text: the stop string or token, the end-of-text where special tokens are shown
	IgnoreEOS   bool     // end-of-text does not end a choice

	Logprobs       int  // −1: none; else TokenInfo.Logprob and so many TokenInfo.Top, ≤ 20
	PromptLogprobs bool // Delta.Prompt is filled, with Logprobs tops a token
	SkipSpecial    bool // special tokens leave no text
}

// NoLogprobs is the value of Params.Logprobs that asks for none.
const NoLogprobs = -1

// DefaultParams are OpenAI's defaults: sampling at temperature 1, one choice, no limits.
func DefaultParams() Params {
	return Params{Temperature: 1, TopP: 1, RepetitionPenalty: 1, N: 1, Logprobs: NoLogprobs, SkipSpecial: true}
}

const (
	maxChoices = 128
	maxStops   = 64
	maxStopLen = 4096 // bytes of one stop string
	maxStopIDs = 1024
)

// ParamError says which field of a request is wrong.
type ParamError struct {
	Param   string // as the request names it: "top_p"
	Message string
}

func (e *ParamError) Error() string { return e.Param + ": " + e.Message }

// Validate returns a *ParamError naming the first field out of range. vocab is the number of token ids.
func (p *Params) Validate(vocab int) error {
	bad := func(param, format string, args ...any) error {
		return &ParamError{Param: param, Message: fmt.Sprintf(format, args...)}
	}
	within := func(x, lo, hi float32) bool { return x >= lo && x <= hi } // false for NaN
	switch {
	case p.MaxTokens < 0:
		return bad("max_tokens", "must be at least 1, is %d", p.MaxTokens)
	case p.MinTokens < 0:
		return bad("min_tokens", "must be at least 0, is %d", p.MinTokens)
	case p.MaxTokens > 0 && p.MinTokens > p.MaxTokens:
		return bad("min_tokens", "must be at most max_tokens = %d, is %d", p.MaxTokens, p.MinTokens)
	case !within(p.Temperature, 0, math.MaxFloat32):
		return bad("temperature", "must be a number of at least 0, is %v", p.Temperature)
	case p.TopK < -1:
		return bad("top_k", "must be −1 or 0 (all) or at least 1, is %d", p.TopK)
	case !within(p.TopP, 0, 1) || p.TopP == 0:
		return bad("top_p", "must be in (0, 1], is %v", p.TopP)
	case !within(p.MinP, 0, 1):
		return bad("min_p", "must be in [0, 1], is %v", p.MinP)
	case !within(p.RepetitionPenalty, 0, 2) || p.RepetitionPenalty == 0:
		return bad("repetition_penalty", "must be in (0, 2], is %v", p.RepetitionPenalty)
	case !within(p.PresencePenalty, -2, 2):
		return bad("presence_penalty", "must be in [−2, 2], is %v", p.PresencePenalty)
	case !within(p.FrequencyPenalty, -2, 2):
		return bad("frequency_penalty", "must be in [−2, 2], is %v", p.FrequencyPenalty)
	case p.N < 1 || p.N > maxChoices:
		return bad("n", "must be in [1, %d], is %d", maxChoices, p.N)
	case p.Logprobs < NoLogprobs || p.Logprobs > kernels.MaxTopLogprobs:
		return bad("top_logprobs", "must be in [0, %d], is %d", kernels.MaxTopLogprobs, p.Logprobs)
	case len(p.LogitBias) > kernels.MaxBias:
		return bad("logit_bias", "has %d entries, at most %d are possible", len(p.LogitBias), kernels.MaxBias)
	case len(p.StopTokens) > maxStopIDs:
		return bad("stop_token_ids", "has %d ids, at most %d are possible", len(p.StopTokens), maxStopIDs)
	case len(p.Stop) > maxStops:
		return bad("stop", "has %d strings, at most %d are possible", len(p.Stop), maxStops)
	}
	for _, id := range p.biasIDs() {
		if id < 0 || id >= vocab {
			return bad("logit_bias", "token id %d is not in the vocabulary [0, %d)", id, vocab)
		}
		if b := p.LogitBias[id]; !within(b, -100, 100) {
			return bad("logit_bias", "the bias of token %d must be in [−100, 100], is %v", id, b)
		}
	}
	for _, s := range p.Stop {
		if s == "" || len(s) > maxStopLen {
			return bad("stop", "each string must have 1 to %d bytes, one has %d", maxStopLen, len(s))
		}
	}
	for _, id := range p.StopTokens {
		if id < 0 || id >= vocab {
			return bad("stop_token_ids", "token id %d is not in the vocabulary [0, %d)", id, vocab)
		}
	}
	return nil
}

// biasIDs are the keys of LogitBias in ascending order.
func (p *Params) biasIDs() []int {
	ids := make([]int, 0, len(p.LogitBias))
	for id := range p.LogitBias {
		ids = append(ids, id)
	}
	sort.Ints(ids)
	return ids
}

// greedy reports whether the most probable token is taken.
func (p *Params) greedy() bool { return p.Temperature < 1e-5 }

func (p *Params) penalties() bool {
	return p.RepetitionPenalty != 1 || p.PresencePenalty != 0 || p.FrequencyPenalty != 0
}
