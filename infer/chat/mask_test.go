package chat

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// masked is RenderWithMask with all of its ranges.
func masked(t *Template, in Input) (string, []Span, error) {
	text, spans, err := t.RenderWithMask(in)
	if err != nil {
		return "", nil, err
	}
	var all []Span
	for s, err := range spans {
		if err != nil {
			return "", nil, err
		}
		all = append(all, s)
	}
	return text, all, nil
}

func TestRenderWithMask(t *testing.T) {
	tmpl, _ := demo(t)
	zero := 0
	text, spans, err := masked(tmpl, Input{Messages: []Message{
		{Role: "system", Content: "Be brief."}, {Role: "user", Content: "Hi"}, {Role: "assistant", Content: "Hello. \n"},
		{Role: "user", Content: "Bye"}, {Role: "assistant", Content: "No.", Weight: &zero},
		{Role: "user", Content: "Really"}, {Role: "assistant", Content: "Yes."}}})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range spans {
		got = append(got, text[s.Start:s.End])
	}
	if d := cmp.Diff([]string{"Hello. \n<|im_end|>", "Yes.<|im_end|>"}, got); d != "" {
		t.Errorf("trained text (-want +got):\n%s", d)
	}
	if !strings.HasSuffix(text[:spans[0].Start], "<|im_start|>assistant\n") {
		t.Errorf("before the first span: %q", text[:spans[0].Start])
	}
}

// thinkingTemplate is Qwen3's template, of the golden files.
func thinkingTemplate(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile("testdata/templates.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(data) {
		var g struct{ Name, Template string }
		if err := json.Unmarshal(line, &g); err != nil {
			t.Fatal(err)
		}
		if g.Name == "qwen3" {
			return g.Template
		}
	}
	t.Fatal("the template is not there")
	return ""
}

// TestMaskOfThinking: templates that drop the thoughts of earlier turns.
func TestMaskOfThinking(t *testing.T) {
	zero := 0
	user := func(s string) Message { return Message{Role: "user", Content: s} }
	says := func(s string) Message { return Message{Role: "assistant", Content: s} }
	qwen := thinkingTemplate(t)
	// As the later Qwen3 models' whose prompt begins the thoughts.
	thinks := strings.Replace(qwen, "'<|im_start|>assistant\\n' }}", "'<|im_start|>assistant\\n<think>\\n' }}", 1)
	if thinks == qwen {
		t.Fatal("the generation prompt is not where it was")
	}
	const think = "<think>\nLet me see.\n</think>\n\n"
	for _, c := range []struct {
		name, template string
		messages       []Message
		want           []string
	}{
		{"one turn", qwen, []Message{user("a"), says(think + "b")}, []string{think + "b<|im_end|>"}},
		{"without thoughts", qwen, []Message{user("a"), says("b"), user("c"), says("d")}, []string{"b<|im_end|>", "<think>\n\n</think>\n\nd<|im_end|>"}},
		{"thoughts", qwen, []Message{{Role: "system", Content: "s"}, user("a"), says(think + "b\n"), user("c"), says(think + "d"), user("e"), says(think + "f")},
			[]string{"b\n<|im_end|>", "d<|im_end|>", think + "f<|im_end|>"}},
		{"the last one alone", qwen, []Message{user("a"), {Role: "assistant", Content: think + "b", Weight: &zero}, user("c"), says(think + "d")}, []string{think + "d<|im_end|>"}},
		{"the same answers", qwen, []Message{user("b"), says("b"), user("b"), says("b"), user("b")}, []string{"b<|im_end|>", "b<|im_end|>"}},
		{"prompted", thinks, []Message{user("a"), says(think + "bé"), user("c"), says("\ne "), user("c"), says(think + "d")},
			[]string{"bé<|im_end|>", "\ne <|im_end|>", "Let me see.\n</think>\n\nd<|im_end|>"}},
		{"trimmed", "{% for m in messages %}{% if loop.last %}!{% endif %}[{{ m.content | trim }}]{% endfor %}", []Message{user("a"), says(" b "), user("c")}, []string{"b]"}},
		{"a mark at the last", "{% for m in messages %}{% if loop.last %}!{% endif %}{{ m.content }}{% endfor %}", []Message{user("a"), says("b")}, []string{"b"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			tmpl, err := Parse(c.template, Options{EOS: "<|im_end|>"})
			if err != nil {
				t.Fatal(err)
			}
			text, spans, err := masked(tmpl, Input{Messages: c.messages})
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, s := range spans {
				got = append(got, text[s.Start:s.End])
				if strings.HasPrefix(c.template, qwen[:40]) && !strings.HasSuffix(text[:s.Start], "<|im_start|>assistant\n") && !strings.HasSuffix(text[:s.Start], "assistant\n<think>\n") {
					t.Errorf("%q is trained after %q", text[s.Start:s.End], text[:s.Start])
				}
			}
			if d := cmp.Diff(c.want, got); d != "" {
				t.Errorf("of %q is trained (-want +got):\n%s", text, d)
			}
			whole, err := tmpl.Render(Input{Messages: c.messages})
			if err != nil || whole != text {
				t.Errorf("%q, %v, rendered plainly %q", text, err, whole)
			}
		})
	}
}

func TestNotPrefix(t *testing.T) {
	for _, template := range []string{
		`{% for m in messages %}{% if loop.last %}!{% endif %}{{ m.content | upper }}{% endfor %}`,
		`{% for m in messages %}{% if loop.last %}!{% endif %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}`,
		`{{ messages | length }}{% for m in messages[::-1] %}{{ m.content }}{% endfor %}`,
	} {
		tmpl, err := Parse(template, Options{})
		if err != nil {
			t.Fatal(err)
		}
		messages := []Message{{Role: "user", Content: "a"}, {Role: "assistant", Content: "b"}, {Role: "user", Content: "c"}, {Role: "assistant", Content: "d"}}
		if text, spans, err := masked(tmpl, Input{Messages: messages}); !errors.Is(err, ErrNotPrefix) {
			t.Errorf("%s: %q, %v, %v, want %v", template, text, spans, err, ErrNotPrefix)
		}
	}
}
