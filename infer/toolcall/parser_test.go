package toolcall

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

type call struct{ Name, Arguments string }

type read struct {
	Content string
	Calls   []call
}

// parse reads parts of a text and checks the order of the pieces.
func parse(t interface{ Fatalf(string, ...any) }, p *Parser, parts ...string) (r read) {
	add := func(pieces []Piece) {
		for _, x := range pieces {
			r.Content += x.Content
			switch {
			case x.Content != "":
				if x.Name != "" || x.Arguments != "" {
					t.Fatalf("a piece of content and of a call: %+v", x)
				}
			case x.Name != "":
				if x.Call != len(r.Calls) {
					t.Fatalf("call %d begins after %d calls", x.Call, len(r.Calls))
				}
				r.Calls = append(r.Calls, call{Name: x.Name})
			case x.Arguments == "" || x.Call != len(r.Calls)-1:
				t.Fatalf("an odd piece behind %d calls: %+v", len(r.Calls), x)
			}
			if x.Arguments != "" {
				r.Calls[x.Call].Arguments += x.Arguments
			}
		}
	}
	for _, s := range parts {
		add(p.Add(s))
	}
	add(p.End())
	if p.Calls() != len(r.Calls) {
		t.Fatalf("%d calls, the parser says %d", len(r.Calls), p.Calls())
	}
	return r
}

var names = []string{"weather", "now"}

var texts = []struct {
	name   string
	format Format
	text   string
	want   read
}{
	{"none", None, `<tool_call>{"name": "now"}</tool_call>`, read{`<tool_call>{"name": "now"}</tool_call>`, nil}},
	{"plain", Hermes, " Hello <b>.\n", read{" Hello <b>.\n", nil}},
	{"blank", Hermes, " \n ", read{" \n ", nil}},
	{"hermes", Hermes, "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Bern } \\\" {\", \"n\": [1, {\"a\": {}}]}}\n</tool_call>",
		read{"", []call{{"weather", `{"city": "Bern } \" {", "n": [1, {"a": {}}]}`}}}},
	{"hermes, two and words", Hermes, "Let me see.\n<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>\n<tool_call>{\"arguments\": {\"x\":1}, \"name\": \"weather\"}</tool_call>\n",
		read{"Let me see.", []call{{"now", "{}"}, {"weather", `{"x":1}`}}}},
	{"a list", Hermes, `<tool_call>[{"name": "now", "arguments": {}}, {"name": "weather", "arguments": {"city": "é\n"}}]</tool_call>`,
		read{"", []call{{"now", "{}"}, {"weather", `{"city": "é\n"}`}}}},
	{"an empty list", Hermes, `<tool_call>[]</tool_call>`, read{`<tool_call>[]</tool_call>`, nil}},
	{"no closing", Hermes, `<tool_call>{"name": "now", "arguments": {}}`, read{"", []call{{"now", "{}"}}}},
	{"words behind", Hermes, "<tool_call>{\"name\": \"now\", \"arguments\": {}}</tool_call>\nDone. ", read{"\nDone.", []call{{"now", "{}"}}}},
	{"no arguments", Hermes, `<tool_call>{"name": "now"}</tool_call>`, read{"", []call{{"now", "{}"}}}},
	{"null arguments", Hermes, `<tool_call>{"name": "now", "arguments": null}</tool_call>`, read{"", []call{{"now", "{}"}}}},
	{"arguments in a string", Hermes, `<tool_call>{"name": "now", "arguments": "{\"a\": 1}"}</tool_call>`, read{"", []call{{"now", `{"a": 1}`}}}},
	{"other keys", Hermes, `<tool_call>{"id": 7, "x": [{"name": "no"}], "name": "now", "arguments": {"name": "y"}, "z": true}</tool_call>`, read{"", []call{{"now", `{"name": "y"}`}}}},
	{"unknown tool", Hermes, `a <tool_call>{"name": "rm", "arguments": {}}</tool_call> b`, read{`a <tool_call>{"name": "rm", "arguments": {}}</tool_call> b`, nil}},
	{"not JSON", Hermes, "<tool_call>now()</tool_call>", read{"<tool_call>now()</tool_call>", nil}},
	{"broken before the name", Hermes, `<tool_call>{"name" "now"}`, read{`<tool_call>{"name" "now"}`, nil}},
	{"cut before the name", Hermes, `<tool_call>{"name": "no`, read{`<tool_call>{"name": "no`, nil}},
	{"cut in the arguments", Hermes, `<tool_call>{"name": "now", "arguments": {"a": "b`, read{"", []call{{"now", `{"a": "b`}}}},
	{"cut in the opening", Hermes, `abc <tool_`, read{"abc <tool_", nil}},
	{"llama", Llama3, `{"name": "weather", "parameters": {"city": "x"}}`, read{"", []call{{"weather", `{"city": "x"}`}}}},
	{"llama, tag", Llama3, "<|python_tag|>{\"type\": \"function\", \"name\": \"now\", \"parameters\": {}}; {\"name\": \"weather\", \"parameters\": {}}", read{"", []call{{"now", "{}"}, {"weather", "{}"}}}},
	{"llama, other JSON", Llama3, ` {"name": "Bob", "age": 3}`, read{` {"name": "Bob", "age": 3}`, nil}},
	{"llama, JSON without a name", Llama3, `{"a": {"b": 1}} and more`, read{`{"a": {"b": 1}} and more`, nil}},
	{"llama, words first", Llama3, `See {"name": "now", "parameters": {}}`, read{`See {"name": "now", "parameters": {}}`, nil}},
	{"llama, code", Llama3, `<|python_tag|>print(1)`, read{`<|python_tag|>print(1)`, nil}},
	{"mistral", Mistral, `[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "x"}}, {"name": "now", "arguments": {}}]`, read{"", []call{{"weather", `{"city": "x"}`}, {"now", "{}"}}}},
	{"mistral, ids", Mistral, `[TOOL_CALLS][{"name": "now", "arguments": {}, "id": "abc123xyz"}]`, read{"", []call{{"now", "{}"}}}},
	{"mistral, short", Mistral, `[TOOL_CALLS]weather{"city": "x"}[TOOL_CALLS]now[CALL_ID]abc123xyz[ARGS]{}`, read{"", []call{{"weather", `{"city": "x"}`}, {"now", "{}"}}}},
	{"mistral, short unknown", Mistral, `[TOOL_CALLS]rm[ARGS]{"a": 1}`, read{`[TOOL_CALLS]rm[ARGS]{"a": 1}`, nil}},
	{"mistral, words", Mistral, `I [think] so [TOOL`, read{`I [think] so [TOOL`, nil}},
}

func TestParser(t *testing.T) {
	for _, x := range texts {
		got := parse(t, NewParser(x.format, names, false), x.text)
		if d := cmp.Diff(x.want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", x.name, d)
		}
	}
}

func TestSingle(t *testing.T) {
	p := NewParser(Hermes, names, true)
	got := parse(t, p, texts[4].text+" more")
	if d := cmp.Diff(read{"Let me see.", []call{{"now", "{}"}}}, got); d != "" || !p.Whole() {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// A call that is forced begins in the prompt.
func TestPrefix(t *testing.T) {
	for _, f := range []Format{Hermes, Llama3, Mistral} {
		named, _ := f.Prefix("weather")
		got := parse(t, NewParser(f, names, true), named, ` {"city": `, `"x"}`)
		if d := cmp.Diff([]call{{"weather", `{"city": "x"}`}}, got.Calls); d != "" || got.Content != "" {
			t.Errorf("%s, named: %+v", f, got)
		}
		free, key := f.Prefix("")
		p := NewParser(f, names, true)
		got = parse(t, p, free, `{"name": "now", "`+key+`": {}}`)
		if d := cmp.Diff(read{"", []call{{"now", "{}"}}}, got); d != "" || !p.Whole() {
			t.Errorf("%s: %+v", f, got)
		}
	}
}

// However a text is cut, the pieces add up to the same; and a text without calls stays as it is.
func TestParts(t *testing.T) {
	pieces := []string{"<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|python_tag|>", `{"name": "now", `, `"arguments": {"a": "}"}}`, `"parameters": {}}`, "[", "]", ", ", "; ",
		"{", "}", "\"", "\\", " ", "\n", "now", "[ARGS]", "[CALL_ID]", "ab", "é", "<", "<tool", "null", "1"}
	rapid.Check(t, func(t *rapid.T) {
		format := rapid.SampledFrom([]Format{None, Hermes, Llama3, Mistral}).Draw(t, "format")
		text := strings.Join(rapid.SliceOfN(rapid.SampledFrom(pieces), 0, 14).Draw(t, "text"), "")
		if rapid.Bool().Draw(t, "sane") {
			text = rapid.SampledFrom(texts).Draw(t, "known").text
		}
		single := rapid.Bool().Draw(t, "single")
		whole := parse(t, NewParser(format, names, single), text)
		var parts []string
		for rest := text; rest != ""; {
			n := rapid.IntRange(1, len(rest)).Draw(t, "part")
			parts, rest = append(parts, rest[:n]), rest[n:]
		}
		if d := cmp.Diff(whole, parse(t, NewParser(format, names, single), parts...)); d != "" {
			t.Fatalf("%q in the parts %q (-whole +parts):\n%s", text, parts, d)
		}
		if len(whole.Calls) == 0 && whole.Content != text {
			t.Fatalf("%q became %q", text, whole.Content)
		}
	})
}

func FuzzParser(f *testing.F) {
	for _, x := range texts {
		f.Add(string(x.format), x.text, uint8(3))
	}
	f.Fuzz(func(t *testing.T, format, text string, cut uint8) {
		whole := parse(t, NewParser(Format(format), names, false), text)
		at := min(int(cut), len(text))
		if d := cmp.Diff(whole, parse(t, NewParser(Format(format), names, false), text[:at], text[at:])); d != "" {
			t.Fatal(d)
		}
	})
}
