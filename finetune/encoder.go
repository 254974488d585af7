package finetune

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"

	"bhive/infer/chat"
	"bhive/infer/tokenizer"
	"bhive/infer/toolcall"
)

// baseEncoder is the Encoder of a base model's own tokenizer and template.
type baseEncoder struct {
	tok   *tokenizer.Tokenizer
	tmpl  *chat.Template
	tools bool // the template shows tools and calls of them
	eos   []int
}

// NewEncoder makes an Encoder. tmpl may be nil; eos are the tokens that end a text, the first the one that is trained.
func NewEncoder(tok *tokenizer.Tokenizer, tmpl *chat.Template, eos []int) Encoder {
	return &baseEncoder{tok, tmpl, toolcall.Find(tmpl) != toolcall.None, slices.Clone(eos)}
}

func (e *baseEncoder) HasChat() bool { return e.tmpl != nil }

func (e *baseEncoder) End() int {
	if len(e.eos) == 0 {
		return -1
	}
	return e.eos[0]
}

func (e *baseEncoder) Stops(id int) bool { return slices.Contains(e.eos, id) }

func (e *baseEncoder) Decode(ids []int) string { return e.tok.Decode(ids, true) }

func (e *baseEncoder) Text(text string) []int {
	ids := e.tok.Encode(text, true)
	for n := len(ids); n > 0 && text != "" && e.Stops(ids[n-1]) && !strings.HasSuffix(text, e.tok.TokenString(ids[n-1])); n-- {
		ids = ids[:n-1] // a tokenizer that ends texts by itself
	}
	return ids
}

func (e *baseEncoder) Continue(text string) []int { return e.tok.Encode(text, false) }

func (e *baseEncoder) Prompt(user string) ([]int, error) {
	if e.tmpl == nil {
		return e.Text(user), nil
	}
	text, err := e.tmpl.Render(chat.Input{Messages: []chat.Message{{Role: "user", Content: user}}, AddGenerationPrompt: true})
	if err != nil {
		return nil, err
	}
	return e.tok.Encode(text, false), nil
}

func (e *baseEncoder) Chat(turns []Message, tools []json.RawMessage, most int) ([]int, []bool, error) {
	if e.tmpl == nil {
		return nil, nil, chat.ErrNoTemplate
	}
	in := chat.Input{Tools: tools}
	for _, t := range turns {
		if !e.tools && (len(tools) > 0 || len(t.ToolCalls) > 0) {
			return nil, nil, errors.New("the model's chat template does not define tools")
		}
		m := chat.Message{Role: t.Role, Content: t.Content, NullContent: t.Content == "" && len(t.ToolCalls) > 0, ToolCalls: t.ToolCalls, ToolCallID: t.ToolCallID}
		weight := 0
		if t.Train {
			weight = 1
		}
		m.Weight = &weight
		in.Messages = append(in.Messages, m)
	}
	text, spans, err := e.tmpl.RenderWithMask(in)
	if err != nil {
		return nil, nil, err
	}
	var found []chat.Span
	// A trained range is encoded by itself, as it would be generated after its prompt.
	var ids []int
	var trained []bool
	add := func(piece string, train bool) {
		for _, id := range e.tok.Encode(piece, false) {
			ids, trained = append(ids, id), append(trained, train)
		}
	}
	at := 0
	for s, err := range spans {
		if err != nil {
			return nil, nil, err
		}
		add(text[at:s.Start], false)
		add(text[s.Start:s.End], true)
		found, at = append(found, s), s.End
		if len(ids)/2 > most { // byBytes may make fewer of the same text
			break
		}
	}
	add(text[at:], false)
	if e.tok.Decode(ids, false) != text {
		return e.byBytes(text, found)
	}
	return ids, trained, nil
}

// byBytes encodes a text as a whole, for tokenizers that treat a text's beginning in a way of their own. A token is trained where a
// trained range holds its last byte.
func (e *baseEncoder) byBytes(text string, spans []chat.Span) ([]int, []bool, error) {
	ids := e.tok.Encode(text, false)
	trained := make([]bool, len(ids))
	total := 0
	for _, id := range ids {
		total += len(e.tok.TokenBytes(id))
	}
	at := len(text) - total // a space put before the text counts as bytes before its beginning
	for i, id := range ids {
		at += len(e.tok.TokenBytes(id))
		trained[i] = slices.ContainsFunc(spans, func(s chat.Span) bool { return s.Start < at && at <= s.End })
	}
	return ids, trained, nil
}
