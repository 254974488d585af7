package chat

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestGoldenTemplates holds well-known templates against Transformers' rendering of them.
func TestGoldenTemplates(t *testing.T) {
	data, err := os.ReadFile("testdata/templates.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(data) {
		var g struct {
			Name, Template      string
			Messages            []Message
			Tools               []json.RawMessage
			AddGenerationPrompt bool `json:"add_generation_prompt"`
			Kwargs              map[string]any
			Text, Error         string
		}
		if err := json.Unmarshal(line, &g); err != nil {
			t.Fatal(err)
		}
		tmpl, err := Parse(g.Template, Options{BOS: "<s>", EOS: "</s>"})
		if err != nil {
			t.Fatalf("%s: %v", g.Name, err)
		}
		text, err := tmpl.Render(Input{g.Messages, g.Tools, g.AddGenerationPrompt, g.Kwargs})
		if (err != nil) != (g.Error != "") || err != nil && !errors.Is(err, ErrTemplate) {
			t.Errorf("%s: error %v, want %q", g.Name, err, g.Error)
		}
		var raised *RaisedError
		if errors.As(err, &raised) && raised.Message != g.Error {
			t.Errorf("%s raised %q, want %q", g.Name, raised.Message, g.Error)
		}
		if d := cmp.Diff(g.Text, text); d != "" {
			t.Errorf("%s (-want +got):\n%s", g.Name, d)
		}
	}
}

func TestStrftime(t *testing.T) {
	tmpl, err := Parse(`{{ strftime_now("%d %b %Y %-d %H:%M:%S %j %% %q") }}`, Options{Now: func() time.Time { return time.Date(2024, 7, 6, 5, 4, 3, 0, time.UTC) }})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := tmpl.Render(Input{}); err != nil || got != "06 Jul 2024 6 05:04:03 188 % %q" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestFromHF(t *testing.T) {
	named := []byte(`{"chat_template":[{"name":"default","template":"d{{bos_token}}"},{"name":"tool_use","template":"t{{eos_token}}"}],"bos_token":{"content":"<b>","lstrip":false},"eos_token":"<e>","pad_token":null}`)
	tmpl, err := FromHF(named, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := tmpl.Render(Input{}); got != "d<b>" || err != nil {
		t.Errorf("default: %q, %v", got, err)
	}
	if got, err := tmpl.Render(Input{Tools: []json.RawMessage{[]byte(`{}`)}}); got != "t<e>" || err != nil {
		t.Errorf("tool_use: %q, %v", got, err)
	}
	tmpl, err = FromHF(named, []byte("file{{eos_token}}"))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := tmpl.Render(Input{}); got != "file<e>" || err != nil {
		t.Errorf("file: %q, %v", got, err)
	}
	for config, want := range map[string]error{`{}`: ErrNoTemplate, `{"chat_template":[{"name":"x","template":""}]}`: ErrNoTemplate, `{"chat_template":"{% if"}`: ErrSyntax, `{`: ErrMessage, `{"chat_template":3}`: ErrMessage} {
		if _, err := FromHF([]byte(config), nil); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", config, err, want)
		}
	}
}

func TestMessages(t *testing.T) {
	var m []Message
	if err := json.Unmarshal([]byte(`[{"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}],"z":1,"b":{"y":1,"x":2}},{"role":"assistant","content":null,"weight":0,"tool_calls":[{"function":{"name":"f","arguments":"{\"b\":1,\"a\":2}"}}]}]`), &m); err != nil {
		t.Fatal(err)
	}
	tmpl, err := Parse(`{{ messages | tojson }}`, Options{})
	if err != nil {
		t.Fatal(err)
	}
	want := `[{"role": "user", "content": "ab", "z": 1, "b": {"y": 1, "x": 2}}, {"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "f", "arguments": {"b": 1, "a": 2}}}]}]`
	if got, err := tmpl.Render(Input{Messages: m}); got != want || err != nil {
		t.Errorf("%s, %v\nwant %s", got, err, want)
	}
	for _, bad := range []string{`[]`, `{"role":3}`, `{"content":3}`, `{"content":[{"type":"image_url"}]}`, `{"weight":2}`, `{"tool_calls":{}}`} {
		if err := json.Unmarshal([]byte(bad), new(Message)); !errors.Is(err, ErrMessage) {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(smolTemplate, "hi")
	f.Add(`{% for m in messages %}{{ m | tojson }}{% endfor %}{{ messages[-1:] }}`, "x")
	f.Fuzz(func(t *testing.T, template, content string) {
		if len(template) > 200 {
			return
		}
		tmpl, err := Parse(template, Options{})
		if err == nil {
			_, _ = tmpl.Render(Input{Messages: []Message{{Role: "user", Content: content}}})
		} else if !errors.Is(err, ErrSyntax) {
			t.Fatal(err)
		}
	})
}

func FuzzMessage(f *testing.F) {
	f.Add([]byte(`{"role":"user","content":[{"type":"text","text":"a"}],"tool_calls":[{"function":{"arguments":"{}"}}],"x":[1e99]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var m Message
		if json.Unmarshal(data, &m) == nil {
			_, _ = m.value()
		}
	})
}
