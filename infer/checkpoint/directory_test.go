package checkpoint

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"strings"
	"testing"
	"testing/fstest"

	"bhive/adapters/safetensors"
)

func tinyFS(t *testing.T, name string) fstest.MapFS {
	src, out := os.DirFS("../testdata/tiny/"+name), fstest.MapFS{}
	entries, err := fs.ReadDir(src, ".")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		data, err := fs.ReadFile(src, e.Name())
		if err != nil {
			t.Fatal(err)
		}
		out[e.Name()] = &fstest.MapFile{Data: data}
	}
	return out
}

func TestDirectoryRefuses(t *testing.T) {
	const index, first, second = "model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
	for _, c := range []struct {
		name, want string
		kind       error
		change     func(fstest.MapFS)
	}{
		{"no config", "config.json", fs.ErrNotExist, func(f fstest.MapFS) { delete(f, "config.json") }},
		{"no weights", "model.safetensors", ErrUnsupported, func(f fstest.MapFS) { delete(f, index) }},
		{"no shard", second, fs.ErrNotExist, func(f fstest.MapFS) { delete(f, second) }},
		{"shard truncated", second, ErrFormat, func(f fstest.MapFS) { f[second].Data = f[second].Data[:1000] }},
		{"shard twice", "is in both", ErrFormat, func(f fstest.MapFS) { f[second].Data = f[first].Data }},
		{"index lies", "where the index puts it", ErrFormat, func(f fstest.MapFS) {
			f[index].Data = bytes.Replace(f[index].Data, []byte(second), []byte(first), 1)
		}},
		{"index leaves the directory", "no file name", ErrFormat, func(f fstest.MapFS) {
			f[index].Data = bytes.Replace(f[index].Data, []byte(second), []byte("../"+second), 1)
		}},
		{"index is no JSON", index, ErrFormat, func(f fstest.MapFS) { f[index].Data = []byte("{") }},
		{"wrong shape", "model.embed_tokens.weight is [512 64], the config wants [513 64]", ErrFormat, func(f fstest.MapFS) {
			f["config.json"].Data = bytes.Replace(f["config.json"].Data, []byte("512"), []byte("513"), 1)
		}},
		{"missing tensor", "q_norm.weight is missing", ErrFormat, func(f fstest.MapFS) {
			s := strings.NewReplacer("LlamaFor", "Qwen3For", `"llama"`, `"qwen3"`).Replace(string(f["config.json"].Data))
			f["config.json"].Data = []byte(s)
		}},
		{"generation config", "generation_config.json", ErrFormat, func(f fstest.MapFS) {
			f["generation_config.json"].Data = []byte(`{"temperature":"hot"}`)
		}},
		{"dtype", "stored as I64", ErrUnsupported, func(f fstest.MapFS) {
			var b bytes.Buffer
			if err := safetensors.Write(&b, []safetensors.Tensor{{Name: "model.embed_tokens.weight", DType: safetensors.I64,
				Shape: []int{512, 64}, Data: make([]byte, 512*64*8)}}, nil); err != nil {
				t.Fatal(err)
			}
			f["model.safetensors"] = &fstest.MapFile{Data: b.Bytes()}
		}},
	} {
		f := tinyFS(t, "llama")
		c.change(f)
		if _, err := OpenFS(f); !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want one with %q", c.name, err, c.want)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	if _, err := Open(dir + "/none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("absent path: %v", err)
	}
	for _, data := range []string{"", "not a GGUF"} {
		if err := os.WriteFile(dir+"/m.gguf", []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(dir + "/m.gguf"); !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), "m.gguf") {
			t.Errorf("file %q: %v", data, err)
		}
	}
}

func TestChatTemplateFile(t *testing.T) {
	f := tinyFS(t, "qwen3")
	f["chat_template.jinja"] = &fstest.MapFile{Data: []byte("A")}
	f["additional_chat_templates/tool_use.jinja"] = &fstest.MapFile{Data: []byte("B")}
	ck, err := OpenFS(f)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"": "A", "tool_use": "B", "rag": ""} {
		if got, err := ck.ChatTemplateFile(name); string(got) != want || err != nil {
			t.Errorf("%q: %q, %v", name, got, err)
		}
	}
}
