package toolcall

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"testing"

	"bhive/infer/chat"
)

// smolTools is how SmolLM2's larger sibling asks for calls: in words alone.
const smolTools = `{% if tools %}{{ '<|im_start|>system\nYou have these tools: <tools>' + (tools | tojson) + '</tools>
Write <tool_call>[{"name": "func_name1", "arguments": {}}]</tool_call><|im_end|>\n' }}{% endif %}{% for m in messages %}{{ m['role'] + ': ' + (m['content'] or '') }}{% endfor %}`

// mistralTools is the tool part of Mistral 7B v0.3's template, which wants ids of nine characters.
const mistralTools = `{{ bos_token }}{% if tools %}{{ '[AVAILABLE_TOOLS] ' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}{% endif %}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + '[/INST]' }}
{%- elif m.tool_calls is defined and m.tool_calls is not none %}{{ '[TOOL_CALLS] [' }}{% for c in m.tool_calls %}{% if c.id|length != 9 %}{{ raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}{% endif %}
{{- (c.function | tojson)[:-1] + ', "id": "' + c.id + '"}' }}{% if not loop.last %}{{ ', ' }}{% endif %}{% endfor %}{{ ']' + eos_token }}
{%- elif m.role == 'tool' %}{{ '[TOOL_RESULTS] {"content": ' + m.content + ', "call_id": "' + m.tool_call_id + '"}[/TOOL_RESULTS]' }}{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}`

func TestFind(t *testing.T) {
	if got := Find(nil); got != None {
		t.Errorf("no template: %s", got)
	}
	for _, x := range []struct {
		source string
		want   Format
	}{{smolTools, Hermes}, {mistralTools, Mistral}, {`{{ tools }}`, None}, {`{% for m in messages %}{{ m.content }}{% endfor %}`, None}, {`{{ raise_exception('never') }}`, None}} {
		template, err := chat.Parse(x.source, chat.Options{BOS: "<s>", EOS: "</s>"})
		if err != nil {
			t.Fatal(err)
		}
		if got := Find(template); got != x.want {
			t.Errorf("%.60q: %s, want %s", x.source, got, x.want)
		}
	}
	// The templates that infer/chat is held to Transformers with.
	data, err := os.ReadFile("../chat/testdata/templates.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	want, seen := map[string]Format{"qwen3": Hermes, "llama31": Llama3, "mistral": None, "odd": None}, map[string]bool{}
	for line := range bytes.Lines(data) {
		var g struct{ Name, Template string }
		if err := json.Unmarshal(line, &g); err != nil {
			t.Fatal(err)
		}
		if seen[g.Name] {
			continue
		}
		seen[g.Name] = true
		template, err := chat.Parse(g.Template, chat.Options{BOS: "<s>", EOS: "</s>"})
		if err != nil {
			t.Fatal(err)
		}
		if got := Find(template); got != want[g.Name] {
			t.Errorf("%s: %s, want %s", g.Name, got, want[g.Name])
		}
	}
	if len(seen) != len(want) {
		t.Errorf("seen: %v", seen)
	}
}

func TestParseFormat(t *testing.T) {
	for _, f := range []Format{None, Hermes, Llama3, Mistral} {
		if got, err := ParseFormat(string(f)); got != f || err != nil {
			t.Errorf("%s: %s, %v", f, got, err)
		}
	}
	if _, err := ParseFormat("pythonic"); !errors.Is(err, ErrFormat) {
		t.Errorf("%v", err)
	}
}
