package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"bhive/infer"
	"bhive/infer/chat"
)

// chatRequest is the body of POST /v1/chat/completions.
type chatRequest struct {
	samplingFields
	Messages            messages       `json:"messages"`
	MaxTokens           *int           `json:"max_tokens"`
	MaxCompletionTokens *int           `json:"max_completion_tokens"`
	Logprobs            *bool          `json:"logprobs"`
	TopLogprobs         *int           `json:"top_logprobs"`
	ContinueFinal       *bool          `json:"continue_final_message"`
	TemplateKwargs      map[string]any `json:"chat_template_kwargs"`
}

// messages reads a conversation and says which message is wrong.
type messages []chat.Message

func (m *messages) UnmarshalJSON(b []byte) error {
	var raw []json.RawMessage
	if err := json.Unmarshal(b, &raw); err != nil {
		return badField("messages", "messages: must be an array of messages")
	}
	*m = make(messages, len(raw))
	for i := range raw {
		if err := json.Unmarshal(raw[i], &(*m)[i]); err != nil {
			param := fmt.Sprintf("messages[%d]", i)
			return badField(param, "%s: %s", param, strings.TrimPrefix(err.Error(), chat.ErrMessage.Error()+": "))
		}
	}
	return nil
}

// maxTokens is the most tokens asked for, 0: as many as fit; and the name of the field that says so.
func (q *chatRequest) maxTokens() (most int, name string, err error) {
	n, name := q.MaxCompletionTokens, "max_completion_tokens"
	if n == nil {
		n, name = q.MaxTokens, "max_tokens"
	}
	if n == nil {
		return 0, name, nil
	}
	if *n < 1 {
		return 0, name, badField(name, "%s: must be at least 1, is %d", name, *n)
	}
	return *n, name, nil
}

// renderChat is the prompt of a conversation.
func (s *Server) renderChat(q *chatRequest) (string, error) {
	if q.ContinueFinal != nil && *q.ContinueFinal {
		return "", badField("continue_final_message", "continue_final_message: not supported by this server")
	}
	return s.render(chat.Input{Messages: []chat.Message(q.Messages), AddGenerationPrompt: true, Kwargs: q.TemplateKwargs})
}

// render renders a conversation by the model's template.
func (s *Server) render(in chat.Input) (string, error) {
	if s.d.Template == nil {
		return "", badField("messages", "messages: the model %s has no chat template; use /v1/completions", s.d.Model.Name)
	}
	if len(in.Messages) == 0 {
		return "", badField("messages", "messages: must not be empty")
	}
	for i, m := range in.Messages {
		if m.Role == "" {
			return "", badField(fmt.Sprintf("messages[%d].role", i), "messages[%d].role: must not be empty", i)
		}
	}
	text, err := s.d.Template.Render(in)
	if errors.Is(err, chat.ErrTemplate) {
		return "", badField("messages", "messages: the model's chat template refuses them: %s", err)
	}
	return text, err
}

func (s *Server) createChatCompletion(w http.ResponseWriter, r *http.Request) error {
	if s.draining.Load() {
		return errDraining
	}
	var q chatRequest
	if err := s.decodeJSON(w, r, &q); err != nil {
		return err
	}
	p, err := q.params(s.d.Model.Defaults)
	if err != nil {
		return err
	}
	limit := ""
	if p.MaxTokens, limit, err = q.maxTokens(); err != nil {
		return err
	}
	logprobs := q.Logprobs != nil && *q.Logprobs
	switch {
	case q.TopLogprobs != nil && !logprobs:
		return badField("top_logprobs", "top_logprobs: needs logprobs to be true")
	case q.TopLogprobs != nil && (*q.TopLogprobs < 0 || *q.TopLogprobs > maxLogprobs):
		return badField("top_logprobs", "top_logprobs: must be in [0, %d], is %d", maxLogprobs, *q.TopLogprobs)
	case logprobs:
		p.Logprobs = 0
		set(&p.Logprobs, q.TopLogprobs)
	}
	constrain, err := s.constraint(&q.formatFields)
	if err != nil {
		return err
	}
	text, err := s.renderChat(&q)
	if err != nil {
		return err
	}
	target, err := s.resolve(r.Context(), q.Model)
	if err != nil {
		return err
	}
	// The template has written the beginning-of-text token where the model wants one.
	g, err := s.submit(r.Context(), []infer.Request{{ID: requestID(r.Context()), Tenant: tenant(r.Context()), Prompt: s.d.Tokenizer.Encode(text, false),
		Adapter: target, Params: p, Constrain: constrain}})
	switch {
	case errors.Is(err, infer.ErrPromptTooLong):
		e := asAPIError(err)
		e.Param = "messages"
		return e
	case errors.Is(err, infer.ErrMaxTokens):
		e := asAPIError(err)
		e.Param = limit
		return e
	}
	if err != nil {
		return err
	}
	defer g.close()
	c := &chatCompletion{s: s, id: "chatcmpl-" + requestID(r.Context()), created: time.Now().Unix(), model: s.shownModel(q.Model),
		logprobs: logprobs, n: p.N, use: usage{choices: p.N}}
	if q.stream() {
		c.stream(w, r, g, q.includeUsage())
		return nil
	}
	return c.whole(w, r, g)
}

// chatCompletion is one request to /v1/chat/completions in progress.
type chatCompletion struct {
	s        *Server
	id       string
	created  int64
	model    string
	logprobs bool
	n        int // choices
	use      usage
}

type chatMessage struct {
	Role    string  `json:"role"`
	Content string  `json:"content"`
	Refusal *string `json:"refusal"`
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
	}
	choices := make([]choice, c.n)
	tokens := make([][]topToken, c.n)
	for i := range choices {
		choices[i].Index, choices[i].Message.Role, tokens[i] = i, "assistant", []topToken{}
	}
	err := g.each(r.Context(), func(_ int, d infer.Delta) error {
		o := &choices[d.Index]
		o.Message.Content += d.Text
		if c.logprobs {
			tokens[d.Index] = append(tokens[d.Index], chatTokens(d.Tokens)...)
		}
		if d.FinishReason != "" {
			o.FinishReason = finishReason(d.FinishReason)
		}
		c.use.note(d.Index, d.Usage)
		return nil
	})
	if err != nil {
		return err
	}
	if c.logprobs {
		for i := range choices {
			choices[i].Logprobs = map[string]any{"content": tokens[i], "refusal": nil}
		}
	}
	writeJSON(w, http.StatusOK, answer{c.id, "chat.completion", c.created, c.model, choices, c.use.sum()})
	return nil
}

// stream writes the deltas as they come: first each choice's role, then its text.
func (c *chatCompletion) stream(w http.ResponseWriter, r *http.Request, g *generations, withUsage bool) {
	head := fmt.Sprintf(`{"id":%s,"object":"chat.completion.chunk","created":%d,"model":%s,"choices":[`, quote(c.id), c.created, quote(c.model))
	tail := "]}"
	if withUsage {
		tail = `],"usage":null}`
	}
	e := newEventStream(w)
	defer e.close()
	began := make([]bool, c.n)
	var line []byte
	chunk := func(index int, delta []byte, logprobs []byte, finish *string) {
		line = fmt.Appendf(append(line[:0], head...), `{"index":%d,"delta":%s,"logprobs":%s,"finish_reason":`, index, delta, logprobs)
		if finish == nil {
			line = append(line, "null"...)
		} else {
			line = append(line, quote(*finish)...)
		}
		line = append(append(line, '}'), tail...)
		e.data(line)
	}
	null := []byte("null")
	err := g.each(r.Context(), func(_ int, d infer.Delta) error {
		if !began[d.Index] {
			began[d.Index] = true
			chunk(d.Index, []byte(`{"role":"assistant","content":""}`), null, nil)
		}
		if d.Text != "" || (c.logprobs && len(d.Tokens) > 0) {
			logprobs := null
			if c.logprobs {
				logprobs = mustJSON(map[string]any{"content": chatTokens(d.Tokens), "refusal": nil})
			}
			chunk(d.Index, append(append([]byte(`{"content":`), quote(d.Text)...), '}'), logprobs, nil)
		}
		if d.FinishReason != "" {
			chunk(d.Index, []byte("{}"), null, finishReason(d.FinishReason))
		}
		c.use.note(d.Index, d.Usage)
		if len(e.buf) == 0 {
			return nil
		}
		return e.flush()
	})
	if err != nil {
		c.s.failStream(e, r, err)
		return
	}
	if withUsage {
		e.data(fmt.Appendf(nil, `%s],"usage":%s}`, head, mustJSON(c.use.sum())))
	}
	e.data([]byte("[DONE]"))
	_ = e.flush() // the client may be gone
}
