package toolcall

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"bhive/infer/chat"
)

// ErrFormat is returned by ParseFormat for a name that no format has.
var ErrFormat = errors.New("toolcall: unknown format")

// Format is a way of writing calls. Their names are vLLM's.
type Format string

const (
	None    Format = "none"        // calls cannot be read
	Hermes  Format = "hermes"      // <tool_call>{"name": …, "arguments": {…}}</tool_call>, also of a list: Hermes, Qwen, SmolLM
	Llama3  Format = "llama3_json" // {"name": …, "parameters": {…}}, after <|python_tag|> or from the beginning
	Mistral Format = "mistral"     // [TOOL_CALLS][{"name": …, "arguments": {…}}], or [TOOL_CALLS]name{…}
)

// ParseFormat finds a format by its name.
func ParseFormat(name string) (Format, error) {
	switch f := Format(name); f {
	case None, Hermes, Llama3, Mistral:
		return f, nil
	}
	return "", fmt.Errorf("%w: %q, want %s, %s, %s or %s", ErrFormat, name, Hermes, Llama3, Mistral, None)
}

const (
	hermesOpen, hermesClose = "<tool_call>", "</tool_call>"
	llamaOpen               = "<|python_tag|>"
	mistralOpen             = "[TOOL_CALLS]"
	mistralID               = "[CALL_ID]"
	mistralArguments        = "[ARGS]"
)

// probe is the name of a tool and a call that templates are tried with.
const probe = "bhive_probe"

// Find tells how a template writes calls: it renders one. None where the template does not show tools to the model at all, or shows calls
// in a way that is not known here; t may be nil.
func Find(t *chat.Template) Format {
	if t == nil {
		return None
	}
	in := chat.Input{Tools: []json.RawMessage{json.RawMessage(`{"type":"function","function":{"name":"` + probe + `","description":"d","parameters":{"type":"object","properties":{}}}}`)},
		Messages: []chat.Message{{Role: "user", Content: "u"}}, AddGenerationPrompt: true}
	prompt, err := t.Render(in)
	if err != nil || !strings.Contains(prompt, probe) {
		return None
	}
	in.AddGenerationPrompt = false
	in.Messages = append(in.Messages, chat.Message{Role: "assistant", NullContent: true, ToolCalls: []json.RawMessage{
		json.RawMessage(`{"id":"bhiveprob","type":"function","function":{"name":"` + probe + `","arguments":"{\"a\":1}"}}`)}},
		chat.Message{Role: "tool", Content: "r", ToolCallID: "bhiveprob", Name: probe})
	if text, err := t.Render(in); err == nil {
		if f := around(text, strings.LastIndex(text, probe)); f != None { // the tool's result may name it once more
			return f
		}
		if f := around(text, strings.LastIndex(strings.ReplaceAll(text, probe+`"`, probe+`.`), probe+".")); f != None {
			return f
		}
	}
	// A template that shows no calls may still ask for them in words.
	for _, f := range []struct {
		mark   string
		format Format
	}{{hermesOpen, Hermes}, {mistralOpen, Mistral}, {`"parameters": dictionary`, Llama3}} {
		if strings.Contains(prompt, f.mark) {
			return f.format
		}
	}
	return None
}

// around tells the format of the call whose name stands at text[at:].
func around(text string, at int) Format {
	if at < 0 {
		return None
	}
	before, after := text[max(0, at-64):at], text[at:min(len(text), at+64)]
	hermes, mistral := strings.LastIndex(before, hermesOpen), strings.LastIndex(before, mistralOpen)
	switch {
	case hermes > mistral && strings.Contains(after, `"arguments"`):
		return Hermes
	case mistral > hermes:
		return Mistral
	case strings.Contains(after, `"parameters": {"a"`):
		return Llama3
	}
	return None
}

// Prefix is the beginning of a call, to stand behind the prompt of a text that must call: of the named tool, up to its arguments, or
// with an empty name of any, up to the object that describes the call. Key is what the object calls the arguments.
func (f Format) Prefix(name string) (prefix, key string) {
	key = "arguments"
	switch f {
	case Hermes:
		prefix = hermesOpen + "\n"
	case Mistral:
		prefix = mistralOpen + "["
	case Llama3:
		key = "parameters"
	default:
		panic("toolcall: no call can be forced in the format " + string(f))
	}
	if name != "" {
		quoted, err := json.Marshal(name)
		if err != nil {
			panic(err) // strings marshal
		}
		prefix += fmt.Sprintf(`{"name": %s, "%s":`, quoted, key)
	}
	return prefix, key
}

// Special reports whether calls begin with a special token, so that special tokens must be left in the text.
func (f Format) Special() bool { return f == Llama3 || f == Mistral }
