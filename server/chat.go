package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
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

// renderChat is the prompt of a conversation, with the beginning of a call that is forced.
func (s *Server) renderChat(q *chatRequest, tools *toolPlan) (string, error) {
	if q.ContinueFinal != nil && *q.ContinueFinal {
		return "", badField("continue_final_message", "continue_final_message: not supported by this server")
	}
	in := chat.Input{Messages: []chat.Message(q.Messages), AddGenerationPrompt: true, Kwargs: q.TemplateKwargs}
	if tools == nil {
		return s.render(in)
	}
	in.Tools = tools.offered
	if _, set := in.Kwargs["enable_thinking"]; tools.must && !set { // a forced call leaves no room for thoughts
		in.Kwargs = maps.Clone(in.Kwargs)
		if in.Kwargs == nil {
			in.Kwargs = map[string]any{}
		}
		in.Kwargs["enable_thinking"] = false
	}
	text, err := s.render(in)
	return text + tools.prefix, err
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
	if err := s.checkCalls(in.Messages); err != nil {
		return "", err
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
	tools, err := s.planTools(&q)
	if err != nil {
		return err
	}
	if tools != nil && tools.format.Special() {
		p.SkipSpecial = false // calls begin with a special token
	}
	constrain, err := s.constraint(r.Context(), &q.formatFields)
	if err != nil {
		return err
	}
	if tools != nil {
		if constrain != nil {
			return badField("tools", "tools: cannot be combined with a response_format; tool_choice none leaves them out")
		}
		if constrain, err = s.callConstraint(r.Context(), tools); err != nil {
			return err
		}
	}
	text, err := s.renderChat(&q, tools)
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
		logprobs: logprobs, n: p.N, tools: tools, use: usage{choices: p.N}}
	if q.stream() {
		c.stream(w, r, g, q.includeUsage())
		return nil
	}
	return c.whole(w, r, g)
}
