package server

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"time"
	"unicode/utf8"

	"bhive/infer"
)

// completionRequest is the body of POST /v1/completions.
type completionRequest struct {
	samplingFields
	Prompt    prompts `json:"prompt"`
	MaxTokens *int    `json:"max_tokens"`
	Logprobs  *int    `json:"logprobs"`
	Echo      *bool   `json:"echo"`
	Suffix    *string `json:"suffix"`
	BestOf    *int    `json:"best_of"`
}

// prompts reads `prompt`: a text, texts, token ids, or lists of them.
type prompts struct {
	texts []string
	ids   [][]int
}

func (p *prompts) UnmarshalJSON(b []byte) error {
	var text string
	var texts []*string
	var ids []int
	var lists [][]int
	// A null in a list would be the empty text, or token 0.
	switch b = bytes.TrimSpace(b); {
	case bytes.Equal(b, null):
	case json.Unmarshal(b, &text) == nil:
		p.texts = []string{text}
	case json.Unmarshal(b, &texts) == nil && !slices.Contains(texts, nil):
		p.texts = []string{}
		for _, text := range texts {
			p.texts = append(p.texts, *text)
		}
	case json.Unmarshal(b, &ids) == nil && !bytes.Contains(b, null):
		p.ids = [][]int{ids}
	case json.Unmarshal(b, &lists) == nil && !bytes.Contains(b, null):
		p.ids = lists
	default:
		return badField("prompt", "prompt: must be a string, an array of strings, an array of token ids, or an array of such arrays")
	}
	return nil
}

// maxLogprobs is the most alternatives a token that can be asked for.
const maxLogprobs = 20

// maxPrompts is the most prompts of one request.
const maxPrompts = 256

// encode turns the prompts into token ids and their texts.
func (s *Server) encodePrompts(p prompts) (ids [][]int, texts []string, err error) {
	n := max(len(p.texts), len(p.ids))
	if n == 0 {
		return nil, nil, badField("prompt", "prompt: must not be empty")
	}
	if n > maxPrompts {
		return nil, nil, badField("prompt", "prompt: has %d prompts, at most %d are possible", n, maxPrompts)
	}
	vocab := s.d.Tokenizer.VocabSize()
	for i := range n {
		if p.texts != nil {
			ids, texts = append(ids, s.d.Tokenizer.Encode(p.texts[i], true)), append(texts, p.texts[i])
		} else {
			for _, id := range p.ids[i] {
				if id < 0 || id >= vocab {
					return nil, nil, badField("prompt", "prompt: token id %d is not in the vocabulary [0, %d)", id, vocab)
				}
			}
			ids, texts = append(ids, p.ids[i]), append(texts, s.d.Tokenizer.Decode(p.ids[i], false))
		}
		if len(ids[i]) == 0 {
			return nil, nil, badField("prompt", "prompt: prompt %d has no tokens", i)
		}
	}
	return ids, texts, nil
}

func (s *Server) createCompletion(w http.ResponseWriter, r *http.Request) error {
	if s.draining.Load() {
		return errDraining
	}
	var q completionRequest
	if err := s.decodeJSON(w, r, &q); err != nil {
		return err
	}
	if q.Suffix != nil && *q.Suffix != "" {
		return badField("suffix", "suffix: not supported, models served here do not fill in the middle")
	}
	if asks(q.Tools) {
		return badField("tools", "tools: go with /v1/chat/completions")
	}
	p, err := q.params(s.d.Model.Defaults)
	if err != nil {
		return err
	}
	echo := q.Echo != nil && *q.Echo
	set(&p.MaxTokens, q.MaxTokens)
	only := p.MaxTokens == 0 && q.MaxTokens != nil // the prompt alone is wanted
	if only {
		if !echo {
			return badField("max_tokens", "max_tokens: must be at least 1 without echo")
		}
		p.MaxTokens = 1
	}
	if q.Logprobs != nil {
		if *q.Logprobs < 0 || *q.Logprobs > maxLogprobs {
			return badField("logprobs", "logprobs: must be in [0, %d], is %d", maxLogprobs, *q.Logprobs)
		}
		p.Logprobs, p.PromptLogprobs = *q.Logprobs, echo
	}
	n, err := q.bestOf(&p)
	if err != nil {
		return err
	}
	constrain, err := s.constraint(r.Context(), &q.formatFields)
	if err != nil {
		return err
	}
	ids, texts, err := s.encodePrompts(q.Prompt)
	if err != nil {
		return err
	}
	target, err := s.resolve(r.Context(), q.Model)
	if err != nil {
		return err
	}
	var requests []infer.Request
	for _, prompt := range ids {
		if q.MaxTokens == nil { // what room there is, up to the default
			p.MaxTokens = max(1, min(s.config.DefaultMaxTokens, s.d.Engine.Config().MaxContext-len(prompt)))
		}
		requests = append(requests, infer.Request{ID: requestID(r.Context()), Tenant: tenant(r.Context()), Prompt: prompt, Adapter: target, Params: p,
			Constrain: constrain})
	}
	g, err := s.submit(r.Context(), requests)
	if err != nil {
		return err
	}
	defer g.close()
	c := &completion{s: s, id: "cmpl-" + requestID(r.Context()), created: time.Now().Unix(), model: s.shownModel(q.Model), n: p.N,
		echo: echo, only: only, logprobs: q.Logprobs != nil, texts: texts, prompts: make([][]infer.TokenInfo, len(ids)), use: usage{choices: p.N}}
	c.choices = make([]completionChoice, len(ids)*p.N)
	for i := range c.choices {
		c.choices[i].Index = i
	}
	if q.stream() {
		c.stream(w, r, g, q.includeUsage())
		return nil
	}
	err = g.each(r.Context(), func(prompt int, d infer.Delta) error {
		c.add(prompt, d)
		return nil
	})
	if err != nil {
		return err
	}
	if n < p.N {
		c.best(n)
	}
	writeJSON(w, http.StatusOK, answer{c.id, "text_completion", c.created, c.model, c.choices, c.use.sum()})
	return nil
}

// answer is what both kinds of completion answer with.
type answer struct {
	ID      string    `json:"id"`
	Object  string    `json:"object"`
	Created int64     `json:"created"`
	Model   string    `json:"model"`
	Choices any       `json:"choices"`
	Usage   usageJSON `json:"usage"`
}

// shownModel is a request's model as the response names it.
func (s *Server) shownModel(model string) string {
	if model == "" {
		return s.d.Model.Name
	}
	return model
}

// completion is one request to /v1/completions in progress.
type completion struct {
	s        *Server
	id       string
	created  int64
	model    string
	n        int // choices a prompt
	echo     bool
	only     bool // the prompt alone: what is generated is dropped
	logprobs bool
	texts    []string
	prompts  [][]infer.TokenInfo // with echo and logprobs
	choices  []completionChoice
	use      usage
}

type completionChoice struct {
	Index        int           `json:"index"`
	Text         string        `json:"text"`
	Logprobs     *textLogprobs `json:"logprobs"`
	FinishReason *string       `json:"finish_reason"`

	began  bool
	offset int     // characters of text so far, for text_offset
	tokens int     // generated
	sum    float64 // of their logprobs, where those were asked for
}

// textLogprobs is OpenAI's older form.
type textLogprobs struct {
	Tokens        []string              `json:"tokens"`
	TokenLogprobs []*float32            `json:"token_logprobs"`
	TopLogprobs   []*map[string]float32 `json:"top_logprobs"`
	TextOffset    []int                 `json:"text_offset"`
}

// part turns a delta into what it adds to its choice.
func (c *completion) part(prompt int, d infer.Delta) completionChoice {
	at := prompt*c.n + d.Index
	choice := &c.choices[at]
	part := completionChoice{Index: at, FinishReason: finishReason(d.FinishReason)}
	if c.logprobs {
		part.Logprobs = &textLogprobs{Tokens: []string{}, TokenLogprobs: []*float32{}, TopLogprobs: []*map[string]float32{}, TextOffset: []int{}}
	}
	if !choice.began && c.echo {
		part.Text = c.texts[prompt]
	}
	if len(d.Prompt) > 0 { // once, with the first choice's first delta, which is the first of all
		c.prompts[prompt] = d.Prompt
	}
	if !choice.began && c.logprobs {
		for i, t := range c.prompts[prompt] {
			choice.logprob(part.Logprobs, t, i > 0)
		}
	}
	choice.began = true
	for _, t := range d.Tokens {
		choice.tokens, choice.sum = choice.tokens+1, choice.sum+float64(t.Logprob)
	}
	use := d.Usage
	if c.only {
		use.Completion = 0
	} else {
		part.Text += d.Text
		if c.logprobs {
			for _, t := range d.Tokens {
				choice.logprob(part.Logprobs, t, true)
			}
		}
	}
	c.use.note(at, use)
	return part
}

func (c *completionChoice) logprob(l *textLogprobs, t infer.TokenInfo, known bool) {
	l.Tokens = append(l.Tokens, t.Text)
	l.TextOffset = append(l.TextOffset, c.offset)
	c.offset += utf8.RuneCountInString(t.Text)
	if !known {
		l.TokenLogprobs, l.TopLogprobs = append(l.TokenLogprobs, nil), append(l.TopLogprobs, nil)
		return
	}
	top := map[string]float32{}
	for _, alternative := range t.Top {
		top[alternative.Text] = alternative.Logprob
	}
	l.TokenLogprobs, l.TopLogprobs = append(l.TokenLogprobs, &t.Logprob), append(l.TopLogprobs, &top)
}

// add merges a delta into the whole answer.
func (c *completion) add(prompt int, d infer.Delta) {
	part := c.part(prompt, d)
	choice := &c.choices[part.Index]
	choice.Text += part.Text
	if part.FinishReason != nil {
		choice.FinishReason = part.FinishReason
	}
	if part.Logprobs == nil {
		return
	}
	if choice.Logprobs == nil {
		choice.Logprobs = part.Logprobs
		return
	}
	l := choice.Logprobs
	l.Tokens = append(l.Tokens, part.Logprobs.Tokens...)
	l.TokenLogprobs = append(l.TokenLogprobs, part.Logprobs.TokenLogprobs...)
	l.TopLogprobs = append(l.TopLogprobs, part.Logprobs.TopLogprobs...)
	l.TextOffset = append(l.TextOffset, part.Logprobs.TextOffset...)
}

// stream writes the deltas as they come.
func (c *completion) stream(w http.ResponseWriter, r *http.Request, g *generations, withUsage bool) {
	head := fmt.Sprintf(`{"id":%s,"object":"text_completion","created":%d,"model":%s,"choices":[`, quote(c.id), c.created, quote(c.model))
	tail := "]}"
	if withUsage {
		tail = `],"usage":null}`
	}
	e := newEventStream(w)
	defer e.close()
	var line []byte
	err := g.each(r.Context(), func(prompt int, d infer.Delta) error {
		part := c.part(prompt, d)
		if part.Text == "" && part.FinishReason == nil && (part.Logprobs == nil || len(part.Logprobs.Tokens) == 0) {
			return nil
		}
		line = append(append(append(line[:0], head...), mustJSON(part)...), tail...)
		e.data(line)
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
