package server

import (
	"context"
	"errors"
	"io"

	"bhive/infer"
)

// generations are the running prompts of one request, read as one stream.
type generations struct {
	all   []*infer.Generation
	items chan generated
	stop  context.CancelFunc

	leave     func(generated int) // tells the tenant's meter
	generated int                 // tokens, of all choices
}

// generated is what came next of one of the prompts; err io.EOF marks that prompt's end.
type generated struct {
	prompt int
	delta  infer.Delta
	err    error
}

// submit queues a request a prompt. On an error none is left running.
func (s *Server) submit(ctx context.Context, requests []infer.Request) (*generations, error) {
	leave, err := s.enterRequests(ctx, requests)
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(ctx)
	g := &generations{stop: stop, leave: leave}
	defer func() {
		if len(g.all) == len(requests) {
			return
		}
		for _, refused := range requests[len(g.all):] { // was counted in, and is not computed
			g.generated -= len(refused.Prompt)
		}
		g.close() // also where Submit panicked
	}()
	for _, r := range requests {
		one, err := s.d.Engine.Submit(ctx, r)
		if err != nil {
			return nil, err
		}
		g.all = append(g.all, one)
	}
	if len(g.all) > 1 {
		g.items = make(chan generated)
		for i, one := range g.all {
			go func() {
				for {
					d, err := one.Next(ctx)
					select {
					case g.items <- generated{i, d, err}:
					case <-ctx.Done():
						return
					}
					if err != nil {
						return
					}
				}
			}()
		}
	}
	return g, nil
}

// each calls f with every delta, in the order of their coming, until all prompts have ended.
func (g *generations) each(ctx context.Context, f func(prompt int, d infer.Delta) error) error {
	for left := len(g.all); left > 0; {
		var item generated
		if g.items == nil {
			item.delta, item.err = g.all[0].Next(ctx)
		} else {
			select {
			case item = <-g.items:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		if item.delta.FinishReason == infer.FinishCancelled || errors.Is(item.err, context.Canceled) {
			if err := context.Cause(ctx); err != nil {
				return err
			}
			return context.Canceled
		}
		if errors.Is(item.err, io.EOF) {
			left--
			continue
		}
		if item.err != nil {
			return item.err
		}
		g.generated += len(item.delta.Tokens)
		if err := f(item.prompt, item.delta); err != nil {
			return err
		}
	}
	return nil
}

// close cancels what still runs.
func (g *generations) close() {
	g.stop()
	for _, one := range g.all {
		one.Close()
	}
	if g.leave != nil {
		g.leave(g.generated)
		g.leave = nil
	}
}

// usage adds up the choices of a request: a prompt counts once, however many choices it has.
type usage struct {
	choices int // per prompt
	seen    map[int]infer.Usage
}

func (u *usage) note(choice int, v infer.Usage) {
	if u.seen == nil {
		u.seen = map[int]infer.Usage{}
	}
	u.seen[choice] = v
}

func (u *usage) sum() usageJSON {
	var out usageJSON
	for choice, v := range u.seen {
		if choice%u.choices == 0 {
			out.PromptTokens += v.Prompt
			out.Details.CachedTokens += v.CachedPrompt
		}
		out.CompletionTokens += v.Completion
	}
	out.TotalTokens = out.PromptTokens + out.CompletionTokens
	return out
}

type usageJSON struct {
	PromptTokens     int `json:"prompt_tokens"`
	CompletionTokens int `json:"completion_tokens"`
	TotalTokens      int `json:"total_tokens"`
	Details          struct {
		CachedTokens int `json:"cached_tokens"`
	} `json:"prompt_tokens_details"`
}

// finishReason is OpenAI's word for why a choice ended; nil while it has not.
func finishReason(r infer.FinishReason) *string {
	var word string
	switch r {
	case "":
		return nil
	case infer.FinishStop:
		word = "stop"
	default: // length, deadline: the text is cut
		word = "length"
	}
	return &word
}
