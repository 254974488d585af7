package chat

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/ardanlabs/jinja"
)

// Message is one message of a conversation. In JSON its content is a string, null, or a list of parts whose texts are joined.
type Message struct {
	Role        string
	Content     string
	NullContent bool // the content is null: an assistant's message that only calls tools
	Name        string
	ToolCalls   []json.RawMessage
	ToolCallID  string
	Weight      *int    // 0 or 1: is an assistant's message trained; nil is 1. Templates do not see it
	Extra       []Field // other fields, in their order
}

// Field is a field of a message that this package does not know.
type Field struct {
	Name  string
	Value json.RawMessage
}

// UnmarshalJSON reads a message as the OpenAI API writes it.
func (m *Message) UnmarshalJSON(data []byte) error {
	*m = Message{NullContent: true}
	dec := json.NewDecoder(bytes.NewReader(data))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return fmt.Errorf("%w: not an object", ErrMessage)
	}
	for dec.More() {
		t, err := dec.Token()
		if err != nil {
			return fmt.Errorf("%w: %v", ErrMessage, err)
		}
		key, _ := t.(string)
		var raw json.RawMessage
		if err := dec.Decode(&raw); err != nil {
			return fmt.Errorf("%w: %s: %v", ErrMessage, key, err)
		}
		if err := m.set(key, raw); err != nil {
			return fmt.Errorf("%w: %s: %v", ErrMessage, key, err)
		}
	}
	return nil
}

func (m *Message) set(key string, raw json.RawMessage) error {
	null := string(raw) == "null"
	switch key {
	case "role":
		return json.Unmarshal(raw, &m.Role)
	case "content":
		m.NullContent = null
		text, err := contentText(raw)
		m.Content = text
		return err
	case "name":
		return json.Unmarshal(raw, &m.Name)
	case "tool_calls":
		return json.Unmarshal(raw, &m.ToolCalls)
	case "tool_call_id":
		return json.Unmarshal(raw, &m.ToolCallID)
	case "weight":
		if null {
			return nil
		}
		if err := json.Unmarshal(raw, &m.Weight); err != nil {
			return err
		}
		if *m.Weight != 0 && *m.Weight != 1 {
			return fmt.Errorf("%d is neither 0 nor 1", *m.Weight)
		}
		return nil
	}
	m.Extra = append(m.Extra, Field{key, raw})
	return nil
}

// contentText joins the texts of a content.
func contentText(raw json.RawMessage) (string, error) {
	if len(raw) == 0 || raw[0] != '[' {
		var s *string
		if err := json.Unmarshal(raw, &s); err != nil {
			return "", fmt.Errorf("neither a string nor a list of parts")
		}
		if s == nil {
			return "", nil
		}
		return *s, nil
	}
	var parts []struct {
		Type string
		Text *string
	}
	if err := json.Unmarshal(raw, &parts); err != nil {
		return "", err
	}
	var w strings.Builder
	for i, p := range parts {
		if p.Type != "text" || p.Text == nil {
			return "", fmt.Errorf("part %d of type %q: only text is understood", i, p.Type)
		}
		w.WriteString(*p.Text)
	}
	return w.String(), nil
}

// value is the message as a template sees it.
func (m *Message) value() (jinja.Value, error) {
	v := jinja.NewDict()
	d := v.AsDict()
	reasoning, err := m.reasoning()
	if err != nil {
		return v, err
	}
	if reasoning != nil { // a "thinking" of the message's own replaces it
		d.Set("thinking", *reasoning)
	}
	d.Set("role", jinja.NewString(m.Role))
	if m.NullContent && m.Content == "" {
		d.Set("content", jinja.None())
	} else {
		d.Set("content", jinja.NewString(m.Content))
	}
	if m.Name != "" {
		d.Set("name", jinja.NewString(m.Name))
	}
	if len(m.ToolCalls) > 0 {
		var calls []jinja.Value
		for i, raw := range m.ToolCalls {
			call, err := valueOf(raw)
			if err != nil {
				return v, fmt.Errorf("%w: tool_calls[%d]: %v", ErrMessage, i, err)
			}
			openArguments(call)
			calls = append(calls, call)
		}
		d.Set("tool_calls", jinja.NewList(calls))
	}
	if m.ToolCallID != "" {
		d.Set("tool_call_id", jinja.NewString(m.ToolCallID))
	}
	for _, f := range m.Extra {
		x, err := valueOf(f.Value)
		if err != nil {
			return v, fmt.Errorf("%w: %s: %v", ErrMessage, f.Name, err)
		}
		d.Set(f.Name, x)
	}
	if reasoning != nil {
		d.Set("reasoning_content", *reasoning)
	}
	return v, nil
}

// reasoning returns a message's reasoning under any of its names, nil if it has none. Templates find it under the first two.
func (m *Message) reasoning() (*jinja.Value, error) {
	for _, name := range []string{"reasoning_content", "thinking", "reasoning"} {
		for _, f := range m.Extra {
			if f.Name != name || string(f.Value) == "null" {
				continue
			}
			v, err := valueOf(f.Value)
			if err != nil {
				return nil, fmt.Errorf("%w: %s: %v", ErrMessage, name, err)
			}
			return &v, nil
		}
	}
	return nil, nil
}

// openArguments makes an object of a call's arguments, which the OpenAI API writes as a string of JSON and templates expect open.
func openArguments(call jinja.Value) {
	if !call.IsDict() {
		return
	}
	f, ok := call.AsDict().Get("function")
	if !ok || !f.IsDict() {
		return
	}
	args, ok := f.AsDict().Get("arguments")
	if !ok || !args.IsString() {
		return
	}
	if v, err := valueOf([]byte(args.AsString())); err == nil && v.IsDict() {
		f.AsDict().Set("arguments", v)
	}
}
