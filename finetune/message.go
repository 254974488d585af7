package finetune

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
)

// maxMessages of an example: what is trained of it is found by rendering it up to each trained turn.
const maxMessages = 1024

func parseMessages(raw json.RawMessage) ([]Message, error) {
	var list []json.RawMessage
	if json.Unmarshal(raw, &list) != nil {
		return nil, fieldErrorf("messages", "must be an array, is %s", kindOf(raw))
	}
	if len(list) == 0 {
		return nil, fieldErrorf("messages", "must not be empty")
	}
	if len(list) > maxMessages {
		return nil, fieldErrorf("messages", "at most %d, not %d", maxMessages, len(list))
	}
	turns := make([]Message, len(list))
	trained := false
	for i, m := range list {
		at := fmt.Sprintf("messages[%d]", i)
		var fields map[string]json.RawMessage
		if json.Unmarshal(m, &fields) != nil || fields == nil {
			return nil, fieldErrorf(at, "must be an object, is %s", kindOf(m))
		}
		t := &turns[i]
		if err := stringField(fields, "role", &t.Role); err != nil {
			return nil, under(at, err)
		}
		if !slices.Contains([]string{"system", "developer", "user", "assistant", "tool"}, t.Role) {
			return nil, fieldErrorf(at+".role", "must be system, user, assistant or tool, is %q", firstRunes(t.Role, 40))
		}
		if v, ok := fields["tool_calls"]; ok && !isEmpty(v) {
			if t.Role != "assistant" {
				return nil, fieldErrorf(at+".tool_calls", "may be made only by the assistant")
			}
			if err := parseCalls(v, t); err != nil {
				return nil, under(at, err)
			}
		}
		if v, ok := fields["tool_call_id"]; ok && !isEmpty(v) {
			if err := stringField(fields, "tool_call_id", &t.ToolCallID); err != nil {
				return nil, under(at, err)
			}
		}
		if v := fields["content"]; len(t.ToolCalls) == 0 || len(v) > 0 && !isEmpty(v) {
			content, err := parseContent(v)
			if err != nil {
				return nil, under(at, err)
			}
			t.Content = content
		}
		t.Train = t.Role == "assistant"
		if v, ok := fields["weight"]; ok && !bytes.Equal(v, []byte("null")) {
			var w float64
			if json.Unmarshal(v, &w) != nil || w != 0 && w != 1 {
				return nil, fieldErrorf(at+".weight", "must be 0 or 1, is %.40s", v)
			}
			if w == 1 && t.Role != "assistant" {
				return nil, fieldErrorf(at+".weight", "may be 1 only for the assistant")
			}
			t.Train = w == 1
		}
		trained = trained || t.Train
	}
	if !trained {
		return nil, fieldErrorf("messages", "nothing to learn: no turn of the assistant has weight 1")
	}
	return turns, nil
}

// parseCalls reads an assistant's calls of tools, in OpenAI's form.
func parseCalls(raw json.RawMessage, t *Message) error {
	if json.Unmarshal(raw, &t.ToolCalls) != nil {
		return fieldErrorf("tool_calls", "must be an array, is %s", kindOf(raw))
	}
	for i, c := range t.ToolCalls {
		at := fmt.Sprintf("tool_calls[%d].function", i)
		var call struct{ Function map[string]json.RawMessage }
		if json.Unmarshal(c, &call) != nil || call.Function == nil {
			return fieldErrorf(at, "is missing")
		}
		var name, arguments string
		if err := stringField(call.Function, "name", &name); err != nil {
			return under(at, err)
		}
		if err := stringField(call.Function, "arguments", &arguments); err != nil {
			return under(at, err)
		}
		if !json.Valid([]byte(arguments)) {
			return fieldErrorf(at+".arguments", "must be a string of JSON, is %q", firstRunes(arguments, 40))
		}
	}
	return nil
}

// parseTools reads the tools that an example's model may call.
func parseTools(raw json.RawMessage) ([]json.RawMessage, error) {
	if len(raw) == 0 || isEmpty(raw) {
		return nil, nil
	}
	var tools []json.RawMessage
	if json.Unmarshal(raw, &tools) != nil {
		return nil, fieldErrorf("tools", "must be an array, is %s", kindOf(raw))
	}
	for i, t := range tools {
		at := fmt.Sprintf("tools[%d].function", i)
		var tool struct{ Function map[string]json.RawMessage }
		if json.Unmarshal(t, &tool) != nil || tool.Function == nil {
			return nil, fieldErrorf(at, "is missing")
		}
		var name string
		if err := stringField(tool.Function, "name", &name); err != nil {
			return nil, under(at, err)
		}
	}
	return tools, nil
}

// parseContent accepts a string or an array of text parts.
func parseContent(raw json.RawMessage) (string, error) {
	if len(raw) == 0 || bytes.Equal(raw, []byte("null")) {
		return "", fieldErrorf("content", "is missing")
	}
	var s string
	if json.Unmarshal(raw, &s) == nil {
		return s, nil
	}
	var parts []json.RawMessage
	if json.Unmarshal(raw, &parts) != nil {
		return "", fieldErrorf("content", "must be a string or an array of text parts, is %s", kindOf(raw))
	}
	for i, p := range parts {
		at := fmt.Sprintf("content[%d]", i)
		var f map[string]json.RawMessage
		if json.Unmarshal(p, &f) != nil || f == nil {
			return "", fieldErrorf(at, "must be an object, is %s", kindOf(p))
		}
		var kind, text string
		if err := stringField(f, "type", &kind); err != nil {
			return "", under(at, err)
		}
		if kind != "text" {
			return "", fieldErrorf(at+".type", "must be text, is %q", firstRunes(kind, 40))
		}
		if err := stringField(f, "text", &text); err != nil {
			return "", under(at, err)
		}
		s += text
	}
	return s, nil
}

func stringField(fields map[string]json.RawMessage, name string, to *string) error {
	raw, ok := fields[name]
	if !ok || bytes.Equal(raw, []byte("null")) {
		return fieldErrorf(name, "is missing")
	}
	if json.Unmarshal(raw, to) != nil {
		return fieldErrorf(name, "must be a string, is %s", kindOf(raw))
	}
	return nil
}

// under puts a field error's field below another.
func under(at string, err error) error {
	if f, ok := errors.AsType[*FieldError](err); ok {
		return &FieldError{Field: at + "." + f.Field, Message: f.Message}
	}
	return err
}

func kindOf(raw json.RawMessage) string {
	if len(raw) == 0 {
		return "missing"
	}
	switch raw[0] {
	case '{':
		return "an object"
	case '[':
		return "an array"
	case '"':
		return "a string"
	case 't', 'f':
		return "a boolean"
	case 'n':
		return "null"
	default:
		return "a number"
	}
}

func isEmpty(raw json.RawMessage) bool {
	return slices.Contains([]string{"null", "[]", "{}"}, string(raw))
}
