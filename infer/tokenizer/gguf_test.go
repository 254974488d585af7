package tokenizer

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// ggufMetadata reads the key-value part of a trusted GGUF file.
func ggufMetadata(t testing.TB, path string) map[string]any {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r := bufio.NewReader(f)
	read := func(into any) {
		if err := binary.Read(r, binary.LittleEndian, into); err != nil {
			t.Fatal(err)
		}
	}
	u64 := func() uint64 { var n uint64; read(&n); return n }
	u32 := func() uint32 { var n uint32; read(&n); return n }
	text := func() string {
		b := make([]byte, u64())
		if _, err := io.ReadFull(r, b); err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	var value func(kind uint32) any
	value = func(kind uint32) any {
		switch kind {
		case 8:
			return text()
		case 9:
			of := u32()
			out := make([]any, u64())
			for i := range out {
				out[i] = value(of)
			}
			return out
		case 4, 5:
			return int(u32())
		case 6:
			return u32()
		case 7:
			b, _ := r.ReadByte()
			return b != 0
		case 10, 11, 12:
			return u64()
		}
		t.Fatalf("GGUF type %d", kind)
		return nil
	}
	u64() // magic and version
	u64() // tensors
	out := map[string]any{}
	for range u64() {
		key := text()
		out[key] = value(u32())
	}
	return out
}

func TestGoldenSmolLM2(t *testing.T) {
	models, _ := filepath.Glob("../../models/SmolLM2-135M-Instruct*.gguf")
	const golden = "../../../shared/golden/smollm2/"
	if _, err := os.Stat(golden); err != nil || len(models) == 0 {
		t.Skip("SmolLM2's GGUF or its golden files are not here")
	}
	meta := ggufMetadata(t, models[0])
	get := func(key string) any { return meta["tokenizer.ggml."+key] }
	v := GGUFVocab{Model: get("model").(string), Pre: get("pre").(string)}
	for _, x := range get("tokens").([]any) {
		v.Tokens = append(v.Tokens, x.(string))
	}
	for _, x := range get("merges").([]any) {
		v.Merges = append(v.Merges, x.(string))
	}
	for _, x := range get("token_type").([]any) {
		v.TokenTypes = append(v.TokenTypes, int32(x.(int)))
	}
	tok, err := FromGGUF(v)
	if err != nil {
		t.Fatal(err)
	}
	checkGolden(t, tok, append(readGolden(t, golden+"tokens.jsonl"), readGolden(t, golden+"chat.jsonl")...))
}

// asGGUF makes a GGUF vocabulary of a tokenizer over bytes.
func asGGUF(tok *Tokenizer, pre string) GGUFVocab {
	v := GGUFVocab{Model: "gpt2", Pre: pre, Tokens: slices.Clone(tok.model.tokens)}
	v.Merges = make([]string, len(tok.model.merges))
	for pair, m := range tok.model.merges {
		v.Merges[m.rank] = tok.model.tokens[pair>>32] + " " + tok.model.tokens[uint32(pair)]
	}
	v.TokenTypes = make([]int32, len(v.Tokens))
	for i := range v.TokenTypes {
		v.TokenTypes[i] = 1
		if tok.special[i] {
			v.TokenTypes[i] = typeControl
		}
	}
	return v
}

func TestGGUFIsTokenizerJSON(t *testing.T) {
	for name, pre := range map[string]string{"gpt2": "gpt-2", "smollm": "smollm", "llama3": "llama-bpe", "qwen2": "qwen2", "tekken": "tekken"} {
		want := load(t, "testdata/"+name+".tokenizer.json")
		got, err := FromGGUF(asGGUF(want, pre))
		if err != nil {
			t.Fatal(err)
		}
		for _, g := range readGolden(t, "testdata/"+name+".random.jsonl") {
			if strings.Contains(g.Text, "<tool>") || strings.Contains(g.Text, "<strip>") || strings.Contains(strings.ToLower(g.Text), "the") || g.IDsWithSpecial == nil {
				continue // tokens that the GGUF vocabulary was not given
			}
			if ids := got.Encode(g.Text, false); !slices.Equal(ids, g.IDs) {
				t.Errorf("%s: %q: %v, want %v", name, g.Text, ids, g.IDs)
			}
		}
	}
}

// scored is a small SentencePiece vocabulary.
func scored() GGUFVocab {
	v := GGUFVocab{Model: "llama", AddSpacePrefix: true, AddEOS: true}
	add := func(token string, kind int32, score float32) int {
		v.Tokens, v.TokenTypes, v.Scores = append(v.Tokens, token), append(v.TokenTypes, kind), append(v.Scores, score)
		return len(v.Tokens) - 1
	}
	unk, bos, eos := add("<unk>", 2, 0), add("<s>", 3, 0), add("</s>", 3, 0)
	v.Unk, v.BOS, v.EOS = &unk, &bos, &eos
	const hex = "0123456789ABCDEF"
	for b := range 256 {
		add("<0x"+string(hex[b>>4])+string(hex[b&15])+">", typeByte, 0)
	}
	for i, s := range []string{"ab", "bc", "▁a", "abc", "▁abc", "▁▁"} {
		add(s, 1, float32(-i))
	}
	for i, s := range []string{"▁", "a", "b", "c"} {
		add(s, 1, float32(-100-i))
	}
	return v
}

func TestGGUFScores(t *testing.T) {
	tok, err := FromGGUF(scored())
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string][]string{
		"abc":        {"<s>", "▁abc", "</s>"}, // ab first, then abc, then ▁abc
		"bc":         {"<s>", "▁", "bc", "</s>"},
		"é abc":      {"<s>", "▁", "<0xC3>", "<0xA9>", "▁abc", "</s>"},
		"a</s>b":     {"<s>", "▁a", "</s>", "▁", "b", "</s>"},
		"":           {"<s>", "</s>"},
		"  a":        {"<s>", "▁▁", "▁a", "</s>"},
		"\xff":       {"<s>", "▁", "<0xEF>", "<0xBF>", "<0xBD>", "</s>"},
		"<0x41> abc": nil,
	} {
		var got []string
		ids := tok.Encode(text, true)
		for _, id := range ids {
			got = append(got, tok.TokenString(id))
		}
		if want != nil && !slices.Equal(got, want) {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
		if back := tok.Decode(ids, true); back != lossy(text) && text != "a</s>b" {
			t.Errorf("%q came back as %q", text, back)
		}
	}
}

// TestGGUFBOS: where a file does not say whether texts begin with BOS, those of its kind do, or do not.
func TestGGUFBOS(t *testing.T) {
	bos, yes, no := 0, true, false
	for _, c := range []struct {
		model, pre string
		add        *bool
		want       bool
	}{
		{"gpt2", "llama-bpe", nil, true}, {"gpt2", "tekken", nil, true}, {"gpt2", "smollm", nil, false}, {"gpt2", "qwen2", nil, false}, {"llama", "", nil, true},
		{"gpt2", "llama-bpe", &no, false}, {"gpt2", "smollm", &yes, true}, {"llama", "default", &no, false},
	} {
		v := GGUFVocab{Model: c.model, Pre: c.pre, AddBOS: c.add, BOS: &bos, Tokens: []string{"<s>", "a"}, TokenTypes: []int32{typeControl, 1}}
		if c.model == "llama" {
			v.Scores = []float32{0, 0}
		}
		tok, err := FromGGUF(v)
		if err != nil {
			t.Fatal(err)
		}
		if ids := tok.Encode("a", true); slices.Contains(ids, bos) != c.want {
			t.Errorf("%s %s: %v", c.model, c.pre, ids)
		}
	}
}

func TestGGUFErrors(t *testing.T) {
	far := 9
	for name, c := range map[string]struct {
		v    GGUFVocab
		want error
	}{
		"model":      {GGUFVocab{Model: "bert"}, ErrUnsupported},
		"pre":        {GGUFVocab{Model: "gpt2", Pre: "none-such"}, ErrUnsupported},
		"types":      {GGUFVocab{Model: "gpt2", TokenTypes: []int32{1}}, ErrFormat},
		"bos":        {GGUFVocab{Model: "gpt2", BOS: &far}, ErrFormat},
		"merge":      {GGUFVocab{Model: "gpt2", Tokens: []string{"a"}, Merges: []string{"a b"}}, ErrFormat},
		"merge form": {GGUFVocab{Model: "gpt2", Merges: []string{"ab"}}, ErrFormat},
		"scores":     {GGUFVocab{Model: "llama", Tokens: []string{"a"}}, ErrFormat},
	} {
		if _, err := FromGGUF(c.v); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}
