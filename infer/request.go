package infer

import (
	"time"

	"bhive/adapters"
)

// Request asks for one or more continuations of a prompt.
type Request struct {
	ID       string          // the caller's name for it, in logs and in RequestInfo
	Tenant   string          // owner: orders the queue fairly and separates prefix caches
	Prompt   []int           // token ids, at least one
	Adapter  adapters.Target // resolved versions; the zero Target is the base. Leased from Submit to the end
	Params   Params
	Deadline time.Time // zero: none. Choices that run at that time end with FinishDeadline
	// Constrain is optional: it makes the constraint of each choice, before Submit returns.
	Constrain func() Constraint
}

// Constraint restricts what one choice may go on with, e.g. to a grammar. It is called on one goroutine after another, and should take well below
// a millisecond: the sequence has no part in steps meanwhile, and of a tenant one constraint is asked at a time. Its sequence is never ahead of what Accept was told, so it decodes without overlap.
type Constraint interface {
	// Mask sets bit id%32 of dst[id/32] for each token allowed next; dst is zero before, [(vocabulary+31)/32].
	// End-of-text is allowed by its own bit. No bit at all ends the choice with FinishStop.
	Mask(dst []int32)
	// Accept is told the token that was drawn, unless it ended the choice.
	Accept(token int)
}

// FinishReason says why a choice ended; empty while it has not.
type FinishReason string

const (
	FinishStop      FinishReason = "stop"      // end of text, a stop token or a stop string
	FinishLength    FinishReason = "length"    // max_tokens or the end of the context
	FinishCancelled FinishReason = "cancelled" // the context given to Submit was done, or Close was called
	FinishDeadline  FinishReason = "deadline"  // Request.Deadline passed
)

// Usage counts tokens.
type Usage struct {
	Prompt       int // tokens of the prompt
	Completion   int // tokens generated, end-of-text included
	CachedPrompt int // tokens of the prompt whose K and V came from the prefix cache
}

// TokenInfo is one token of the prompt or of the text.
type TokenInfo struct {
	ID      int
	Text    string  // as valid UTF-8
	Bytes   []byte  // exactly
	Logprob float32 // natural logarithm, under the model's own distribution; with Params.Logprobs ≥ 0
	Rank    int     // place in that distribution, from 1; with Params.Logprobs ≥ 0
	Top     []TokenLogprob
}

// TokenLogprob is an alternative at a token's place.
type TokenLogprob struct {
	ID      int
	Text    string
	Bytes   []byte
	Logprob float32
}

// Delta is what came new for one choice.
type Delta struct {
	Index        int    // the choice, from 0
	Text         string // to be appended; text that may yet be part of a stop string comes later
	Tokens       []TokenInfo
	Prompt       []TokenInfo // once, in the first delta of choice 0, with Params.PromptLogprobs; the first token has no Logprob
	FinishReason FinishReason
	StopReason   string // the stop string or the stop token's id in decimal, where one of those ended the choice
	Usage        Usage  // of this choice so far
}
