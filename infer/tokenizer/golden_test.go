package tokenizer

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// goldenLine is one text and what Hugging Face's tokenizers make of it.
type goldenLine struct {
	Text           string
	IDs            []int
	IDsWithSpecial []int `json:"ids_with_special"`
	Decoded        *string
	Skipped        *string // decoded without special tokens
}

func readGolden(t testing.TB, path string) []goldenLine {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var out []goldenLine
	for line := range strings.Lines(string(data)) {
		var g goldenLine
		if err := json.Unmarshal([]byte(line), &g); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		out = append(out, g)
	}
	if len(out) == 0 {
		t.Fatalf("%s is empty", path)
	}
	return out
}

func load(t testing.TB, path string) *Tokenizer {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	tok, err := Parse(data)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return tok
}

const demoPath = "../demo/tokenizer.json"

// goldenNames are the tokenizers of testdata.
func goldenNames(t testing.TB) map[string]string {
	t.Helper()
	files, err := filepath.Glob("testdata/*.tokenizer.json")
	if err != nil || len(files) < 7 {
		t.Fatalf("tokenizers in testdata: %v, %v", files, err)
	}
	names := map[string]string{"demo": demoPath}
	for _, f := range files {
		names[strings.TrimSuffix(filepath.Base(f), ".tokenizer.json")] = f
	}
	return names
}

func checkGolden(t *testing.T, tok *Tokenizer, lines []goldenLine) {
	t.Helper()
	bad := 0
	check := func(what string, got, want any, text string) {
		if d := cmp.Diff(want, got); d != "" {
			if bad++; bad <= 5 {
				t.Errorf("%s of %q (-want +got):\n%s", what, text, d)
			}
		}
	}
	for _, g := range lines {
		if g.IDs == nil {
			t.Fatalf("no ids for %q", g.Text)
		}
		if g.IDsWithSpecial != nil || g.Decoded == nil || g.Text != "" { // otherwise only ids to decode
			check("ids", tok.Encode(g.Text, false), g.IDs, g.Text)
		}
		if g.IDsWithSpecial != nil {
			check("ids with special", tok.Encode(g.Text, true), g.IDsWithSpecial, g.Text)
		}
		if g.Decoded != nil {
			check("decoded", tok.Decode(g.IDs, false), *g.Decoded, g.Text)
		}
		if g.Skipped != nil {
			check("decoded without special", tok.Decode(g.IDs, true), *g.Skipped, g.Text)
		}
	}
	if bad > 0 {
		t.Errorf("%d differences in %d lines", bad, len(lines))
	}
}

func TestGolden(t *testing.T) {
	for name, path := range goldenNames(t) {
		t.Run(name, func(t *testing.T) {
			tok := load(t, path)
			checkGolden(t, tok, readGolden(t, "testdata/"+name+".jsonl"))
		})
	}
}

// TestGoldenRandom holds random texts and ids against what golden_random.py wrote.
func TestGoldenRandom(t *testing.T) {
	for name, path := range goldenNames(t) {
		t.Run(name, func(t *testing.T) {
			checkGolden(t, load(t, path), readGolden(t, "testdata/"+name+".random.jsonl"))
		})
	}
}

func TestGoldenVariants(t *testing.T) {
	data, err := os.ReadFile("testdata/variants.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		var v struct {
			Name, Base string
			Patch      map[string]json.RawMessage
			Cases      []goldenLine
		}
		if err := json.Unmarshal([]byte(line), &v); err != nil {
			t.Fatal(err)
		}
		t.Run(v.Name, func(t *testing.T) {
			file := readObject(t, "testdata/"+v.Base+".tokenizer.json")
			for k, raw := range v.Patch {
				if k != "model" {
					file[k] = raw
					continue
				}
				model := map[string]json.RawMessage{}
				for _, part := range []json.RawMessage{file["model"], raw} {
					if err := json.Unmarshal(part, &model); err != nil {
						t.Fatal(err)
					}
				}
				file["model"], _ = json.Marshal(model)
			}
			patched, _ := json.Marshal(file)
			tok, err := Parse(patched)
			if err != nil {
				t.Fatal(err)
			}
			checkGolden(t, tok, v.Cases)
		})
	}
}

func readObject(t testing.TB, path string) map[string]json.RawMessage {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]json.RawMessage{}
	if err := json.Unmarshal(data, &out); err != nil {
		t.Fatal(err)
	}
	return out
}
