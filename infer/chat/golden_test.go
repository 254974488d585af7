package chat

import (
	"bytes"
	"encoding/json"
	"os"
	"testing"

	"bhive/infer/tokenizer"

	"github.com/google/go-cmp/cmp"
)

type goldenChat struct {
	Messages            []Message
	AddGenerationPrompt bool `json:"add_generation_prompt"`
	Text                string
	IDs                 []int
}

func readChats(t *testing.T, path string) []goldenChat {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var out []goldenChat
	for line := range bytes.Lines(data) {
		var g goldenChat
		if err := json.Unmarshal(line, &g); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		out = append(out, g)
	}
	if len(out) == 0 {
		t.Fatalf("%s is empty", path)
	}
	return out
}

func demo(t *testing.T) (*Template, *tokenizer.Tokenizer) {
	t.Helper()
	config, err := os.ReadFile("../demo/tokenizer_config.json")
	if err != nil {
		t.Fatal(err)
	}
	tmpl, err := FromHF(config, nil)
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile("../demo/tokenizer.json")
	if err != nil {
		t.Fatal(err)
	}
	tok, err := tokenizer.Parse(data)
	if err != nil {
		t.Fatal(err)
	}
	return tmpl, tok
}

func TestGoldenDemo(t *testing.T) {
	tmpl, tok := demo(t)
	for _, g := range readChats(t, "testdata/demo.jsonl") {
		text, err := tmpl.Render(Input{Messages: g.Messages, AddGenerationPrompt: g.AddGenerationPrompt})
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(g.Text, text); d != "" {
			t.Errorf("text (-want +got):\n%s", d)
		}
		if d := cmp.Diff(g.IDs, tok.Encode(text, false)); d != "" {
			t.Errorf("ids of %q (-want +got):\n%s", text, d)
		}
	}
}

// smolTemplate is the template in SmolLM2-135M-Instruct's GGUF file.
const smolTemplate = `{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}`

func TestGoldenSmolLM2(t *testing.T) {
	const path = "../../../shared/golden/smollm2/chat.jsonl"
	if _, err := os.Stat(path); err != nil {
		t.Skip("the golden files of SmolLM2 are not here: ", err)
	}
	tmpl, err := Parse(smolTemplate, Options{BOS: "<|im_start|>", EOS: "<|im_end|>"})
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range readChats(t, path) {
		text, err := tmpl.Render(Input{Messages: g.Messages, AddGenerationPrompt: g.AddGenerationPrompt})
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(g.Text, text); d != "" {
			t.Errorf("text (-want +got):\n%s", d)
		}
	}
}
