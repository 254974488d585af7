package chat

import (
	"encoding/json"
	"fmt"
)

// FromHF makes the template of a Hugging Face checkpoint from its tokenizer_config.json and, if it has one, its
// chat_template.jinja, which comes first. Among named templates "default" is taken, and "tool_use" where tools are given. Either
// file may be nil. Errors are ErrNoTemplate, ErrSyntax or ErrMessage.
func FromHF(tokenizerConfig, jinjaFile []byte) (*Template, error) {
	var f struct {
		ChatTemplate json.RawMessage `json:"chat_template"`
		BOS          tokenText       `json:"bos_token"`
		EOS          tokenText       `json:"eos_token"`
		Pad          tokenText       `json:"pad_token"`
		Unk          tokenText       `json:"unk_token"`
	}
	if len(tokenizerConfig) > 0 {
		if err := json.Unmarshal(tokenizerConfig, &f); err != nil {
			return nil, fmt.Errorf("%w: tokenizer_config.json: %v", ErrMessage, err)
		}
	}
	opts := Options{BOS: string(f.BOS), EOS: string(f.EOS), Pad: string(f.Pad), Unk: string(f.Unk)}
	if len(jinjaFile) > 0 {
		return Parse(string(jinjaFile), opts)
	}
	var text string
	if len(f.ChatTemplate) == 0 || string(f.ChatTemplate) == "null" {
		return nil, ErrNoTemplate
	}
	if json.Unmarshal(f.ChatTemplate, &text) == nil {
		return Parse(text, opts)
	}
	var named []struct{ Name, Template string }
	if err := json.Unmarshal(f.ChatTemplate, &named); err != nil {
		return nil, fmt.Errorf("%w: tokenizer_config.json: chat_template: %v", ErrMessage, err)
	}
	t := &Template{opts: opts}
	for _, n := range named {
		c, err := compile(n.Template)
		if err != nil {
			return nil, fmt.Errorf("template %q: %w", n.Name, err)
		}
		switch n.Name {
		case "default":
			t.chat = c
		case "tool_use":
			t.tools = c
		}
	}
	if t.chat == nil {
		return nil, fmt.Errorf("%w named default", ErrNoTemplate)
	}
	return t, nil
}

// WithTools is the template with another one in its place where tools are given. The error is ErrSyntax.
func (t *Template) WithTools(source string) (*Template, error) {
	c, err := compile(source)
	if err != nil {
		return nil, err
	}
	with := *t
	with.tools = c
	return &with, nil
}

// tokenText is a special token: a string, null, or an object with its content.
type tokenText string

func (t *tokenText) UnmarshalJSON(data []byte) error {
	if len(data) > 0 && data[0] == '{' {
		var o struct{ Content string }
		err := json.Unmarshal(data, &o)
		*t = tokenText(o.Content)
		return err
	}
	var s string
	err := json.Unmarshal(data, &s)
	*t = tokenText(s)
	return err
}
