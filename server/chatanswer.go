package server

import (
	"fmt"
	"net/http"

	"bhive/infer"
)

// chatCompletion is one request to /v1/chat/completions in progress.
type chatCompletion struct {
	s        *Server
	id       string
	created  int64
	model    string
	logprobs bool
	n        int // choices
	tools    *toolPlan
	use      usage
}

type chatMessage struct {
	Role      string     `json:"role"`
	Content   *string    `json:"content"`
	Refusal   *string    `json:"refusal"`
	ToolCalls []chatCall `json:"tool_calls,omitempty"`
}

// chatCall is a call, or in a stream what is new of one.
type chatCall struct {
	Index    *int   `json:"index,omitempty"` // in a stream
	ID       string `json:"id,omitempty"`
	Type     string `json:"type,omitempty"`
	Function struct {
		Name      string `json:"name,omitempty"`
		Arguments string `json:"arguments"`
	} `json:"function"`
}

type tokenLogprob struct {
	Token   string  `json:"token"`
	Logprob float32 `json:"logprob"`
	Bytes   []int   `json:"bytes"`
}

// topToken is a token of the text with its alternatives.
type topToken struct {
	tokenLogprob
	Top []tokenLogprob `json:"top_logprobs"`
}

func ints(b []byte) []int {
	out := make([]int, len(b))
	for i, v := range b {
		out[i] = int(v)
	}
	return out
}

func chatTokens(tokens []infer.TokenInfo) []topToken {
	out := []topToken{}
	for _, t := range tokens {
		e := topToken{tokenLogprob{Token: t.Text, Logprob: t.Logprob, Bytes: ints(t.Bytes)}, []tokenLogprob{}}
		for _, a := range t.Top {
			e.Top = append(e.Top, tokenLogprob{Token: a.Text, Logprob: a.Logprob, Bytes: ints(a.Bytes)})
		}
		out = append(out, e)
	}
	return out
}

// whole answers when all choices have ended.
func (c *chatCompletion) whole(w http.ResponseWriter, r *http.Request, g *generations) error {
	type choice struct {
		Index        int         `json:"index"`
		Message      chatMessage `json:"message"`
		Logprobs     any         `json:"logprobs"`
		FinishReason *string     `json:"finish_reason"`

		content string
		tokens  []topToken
		parser  *choiceParser
	}
	choices := make([]choice, c.n)
	for i := range choices {
		choices[i].Index, choices[i].Message.Role, choices[i].tokens, choices[i].parser = i, "assistant", []topToken{}, c.tools.parser()
	}
	err := g.each(r.Context(), func(_ int, d infer.Delta) error {
		o := &choices[d.Index]
		if o.parser == nil {
			o.content += d.Text
		} else {
			for _, p := range o.parser.pieces(d.Text, d.FinishReason != "") {
				switch o.content += p.Content; {
				case p.Name != "":
					call := chatCall{ID: o.parser.newID(), Type: "function"}
					call.Function.Name = p.Name
					o.Message.ToolCalls = append(o.Message.ToolCalls, call)
				case p.Arguments != "":
					o.Message.ToolCalls[p.Call].Function.Arguments += p.Arguments
				}
			}
		}
		if c.logprobs {
			o.tokens = append(o.tokens, chatTokens(d.Tokens)...)
		}
		if d.FinishReason != "" {
			o.FinishReason = o.parser.finish(finishReason(d.FinishReason))
		}
		c.use.note(d.Index, d.Usage)
		return nil
	})
	if err != nil {
		return err
	}
	for i := range choices {
		o := &choices[i]
		if o.content != "" || len(o.Message.ToolCalls) == 0 {
			o.Message.Content = &o.content
		}
		if c.logprobs {
			o.Logprobs = map[string]any{"content": o.tokens, "refusal": nil}
		}
	}
	writeJSON(w, http.StatusOK, answer{c.id, "chat.completion", c.created, c.model, choices, c.use.sum()})
	return nil
}

// chatStream writes the chunks of an answer.
type chatStream struct {
	*eventStream
	c          *chatCompletion
	head, tail string
	choices    []streamedChoice
	line       []byte
}

type streamedChoice struct {
	began  bool
	parser *choiceParser
	tokens []infer.TokenInfo // not told of yet: their text is held back
}

var null = []byte("null")

// chunk writes a delta, and with it the logprobs of the tokens since the last.
func (s *chatStream) chunk(index int, delta []byte, finish *string) {
	logprobs, choice := null, &s.choices[index]
	if s.c.logprobs && len(choice.tokens) > 0 {
		logprobs = mustJSON(map[string]any{"content": chatTokens(choice.tokens), "refusal": nil})
		choice.tokens = nil
	}
	s.line = fmt.Appendf(append(s.line[:0], s.head...), `{"index":%d,"delta":%s,"logprobs":%s,"finish_reason":`, index, delta, logprobs)
	if finish == nil {
		s.line = append(s.line, null...)
	} else {
		s.line = append(s.line, quote(*finish)...)
	}
	s.line = append(append(s.line, '}'), s.tail...)
	s.data(s.line)
}

func (s *chatStream) content(index int, text string) {
	s.chunk(index, append(append([]byte(`{"content":`), quote(text)...), '}'), nil)
}

// add writes what a delta of the engine adds to its choice.
func (s *chatStream) add(d infer.Delta) {
	choice := &s.choices[d.Index]
	if !choice.began {
		choice.began = true
		s.chunk(d.Index, []byte(`{"role":"assistant","content":""}`), nil)
	}
	if s.c.logprobs {
		choice.tokens = append(choice.tokens, d.Tokens...)
	}
	if choice.parser == nil {
		if d.Text != "" || len(choice.tokens) > 0 {
			s.content(d.Index, d.Text)
		}
	} else {
		for _, p := range choice.parser.pieces(d.Text, d.FinishReason != "") {
			if p.Content != "" {
				s.content(d.Index, p.Content)
				continue
			}
			call := chatCall{Index: &p.Call}
			if call.Function.Name, call.Function.Arguments = p.Name, p.Arguments; p.Name != "" {
				call.ID, call.Type = choice.parser.newID(), "function"
			}
			s.chunk(d.Index, mustJSON(map[string]any{"tool_calls": []chatCall{call}}), nil)
		}
	}
	if d.FinishReason != "" {
		s.chunk(d.Index, []byte("{}"), choice.parser.finish(finishReason(d.FinishReason)))
	}
}

// stream writes the deltas as they come: first each choice's role, then its text and calls.
func (c *chatCompletion) stream(w http.ResponseWriter, r *http.Request, g *generations, withUsage bool) {
	s := &chatStream{eventStream: newEventStream(w), c: c, tail: "]}", choices: make([]streamedChoice, c.n),
		head: fmt.Sprintf(`{"id":%s,"object":"chat.completion.chunk","created":%d,"model":%s,"choices":[`, quote(c.id), c.created, quote(c.model))}
	if withUsage {
		s.tail = `],"usage":null}`
	}
	for i := range s.choices {
		s.choices[i].parser = c.tools.parser()
	}
	defer s.close()
	err := g.each(r.Context(), func(_ int, d infer.Delta) error {
		s.add(d)
		c.use.note(d.Index, d.Usage)
		if len(s.buf) == 0 {
			return nil
		}
		return s.flush()
	})
	if err != nil {
		c.s.failStream(s.eventStream, r, err)
		return
	}
	if withUsage {
		s.data(fmt.Appendf(nil, `%s],"usage":%s}`, s.head, mustJSON(c.use.sum())))
	}
	s.data([]byte("[DONE]"))
	_ = s.flush() // the client may be gone
}
