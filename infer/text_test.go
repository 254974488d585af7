package infer

import (
	"encoding/json"
	"errors"
	"io/fs"
	"strings"
	"testing"
	"testing/fstest"

	"bhive/infer/chat"
	"bhive/infer/checkpoint"
	"bhive/infer/demo"
)

// A checkpoint whose tokenizer is in another form says so.
func TestNoTokenizer(t *testing.T) {
	files := fstest.MapFS{"tokenizer.model": &fstest.MapFile{}}
	for _, name := range []string{"config.json", "model.safetensors"} {
		data, err := fs.ReadFile(demo.FS(), name)
		if err != nil {
			t.Fatal(err)
		}
		files[name] = &fstest.MapFile{Data: data}
	}
	cp, err := checkpoint.OpenFS(files)
	if err != nil {
		t.Fatal(err)
	}
	defer cp.Close()
	if _, _, err := LoadText(cp, nil); !errors.Is(err, checkpoint.ErrUnsupported) || !strings.Contains(err.Error(), "no tokenizer.json") {
		t.Error(err)
	}
}

// Where a checkpoint has a template of its own for tools, it is found.
func TestChatTemplates(t *testing.T) {
	const named = `{"chat_template":[{"name":"default","template":"named"},{"name":"tool_use","template":"named, tools"}]}`
	for _, x := range []struct {
		name         string
		files        map[string]string
		other        string
		plain, tools string // "-": no template
	}{
		{"none", map[string]string{"tokenizer_config.json": `{}`}, "", "-", "-"},
		{"one", map[string]string{"tokenizer_config.json": `{"chat_template":"one"}`}, "", "one", "one"},
		{"named", map[string]string{"tokenizer_config.json": named}, "", "named", "named, tools"},
		{"a file", map[string]string{"tokenizer_config.json": `{"chat_template":"one"}`, "chat_template.jinja": "file"}, "", "file", "file"},
		{"files", map[string]string{"chat_template.jinja": "file", "additional_chat_templates/tool_use.jinja": "file, tools"}, "", "file", "file, tools"},
		{"another", map[string]string{"tokenizer_config.json": named}, "other", "other", "other"},
	} {
		files := fstest.MapFS{}
		for _, name := range []string{"config.json", "model.safetensors", "tokenizer.json"} {
			data, err := fs.ReadFile(demo.FS(), name)
			if err != nil {
				t.Fatal(err)
			}
			files[name] = &fstest.MapFile{Data: data}
		}
		for name, text := range x.files {
			files[name] = &fstest.MapFile{Data: []byte(text)}
		}
		cp, err := checkpoint.OpenFS(files)
		if err != nil {
			t.Fatal(err)
		}
		var other []byte
		if x.other != "" {
			other = []byte(x.other)
		}
		_, template, err := LoadText(cp, other)
		if err != nil {
			t.Errorf("%s: %v", x.name, err)
			continue
		}
		render := func(tools ...json.RawMessage) string {
			if template == nil {
				return "-"
			}
			text, err := template.Render(chat.Input{Tools: tools})
			if err != nil {
				t.Errorf("%s: %v", x.name, err)
			}
			return text
		}
		if plain, tools := render(), render(json.RawMessage(`{}`)); plain != x.plain || tools != x.tools {
			t.Errorf("%s: %q, with tools %q; want %q and %q", x.name, plain, tools, x.plain, x.tools)
		}
		cp.Close()
	}
}
