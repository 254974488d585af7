package server

import (
	"encoding/json"
	"net/http"
	"strings"

	"bhive/infer/chat"
)

// tokenizeRequest is vLLM's: a prompt, or a conversation to be rendered.
type tokenizeRequest struct {
	Model          string            `json:"model"`
	Prompt         *string           `json:"prompt"`
	Messages       messages          `json:"messages"`
	Tools          []json.RawMessage `json:"tools"`
	AddSpecial     *bool             `json:"add_special_tokens"`
	AddGeneration  *bool             `json:"add_generation_prompt"`
	Strings        bool              `json:"return_token_strs"`
	TemplateKwargs map[string]any    `json:"chat_template_kwargs"`
}

type tokenizeResponse struct {
	Count       int      `json:"count"`
	MaxModelLen int      `json:"max_model_len"`
	Tokens      []int    `json:"tokens"`
	Strings     []string `json:"token_strs"`
}

func (s *Server) tokenize(w http.ResponseWriter, r *http.Request) error {
	var q tokenizeRequest
	if err := s.decodeJSON(w, r, &q); err != nil {
		return err
	}
	if _, err := s.resolve(r.Context(), q.Model); err != nil {
		return err
	}
	var text string
	special := q.Messages == nil // a template writes its own
	set(&special, q.AddSpecial)
	switch {
	case q.Prompt != nil && q.Messages != nil:
		return badField("messages", "messages: must not be given together with prompt")
	case q.Prompt != nil:
		text = *q.Prompt
	case q.Messages != nil:
		generation := true
		set(&generation, q.AddGeneration)
		var err error
		if text, err = s.render(chat.Input{Messages: []chat.Message(q.Messages), AddGenerationPrompt: generation, Kwargs: q.TemplateKwargs, Tools: q.Tools}); err != nil {
			return err
		}
	default:
		return badField("prompt", "prompt: is missing, and messages are too")
	}
	out := tokenizeResponse{Tokens: s.d.Tokenizer.Encode(text, special), MaxModelLen: s.d.Engine.Config().MaxContext}
	if out.Tokens == nil {
		out.Tokens = []int{}
	}
	if out.Count = len(out.Tokens); q.Strings {
		out.Strings = make([]string, len(out.Tokens))
		for i, id := range out.Tokens {
			out.Strings[i] = strings.ToValidUTF8(s.d.Tokenizer.TokenString(id), "\uFFFD")
		}
	}
	writeJSON(w, http.StatusOK, out)
	return nil
}

func (s *Server) detokenize(w http.ResponseWriter, r *http.Request) error {
	var q struct {
		Model  string `json:"model"`
		Tokens []*int `json:"tokens"`
	}
	if err := s.decodeJSON(w, r, &q); err != nil {
		return err
	}
	if _, err := s.resolve(r.Context(), q.Model); err != nil {
		return err
	}
	if q.Tokens == nil {
		return badField("tokens", "tokens: is missing")
	}
	ids, err := tokenIDs("tokens", q.Tokens)
	if err != nil {
		return err
	}
	vocab := s.d.Tokenizer.VocabSize()
	for i, id := range ids {
		if id < 0 || id >= vocab {
			return badField("tokens", "tokens: token %d, %d, is not in the vocabulary [0, %d)", i, id, vocab)
		}
	}
	writeJSON(w, http.StatusOK, map[string]string{"prompt": s.d.Tokenizer.Decode(ids, false)})
	return nil
}
