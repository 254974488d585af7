package main

import (
	"io"
	"net/http"
	"os"
	"strings"
	"testing"

	"bhive/infer/tokenizer"
)

// TestWideTokenizer: every id of a wide vocabulary has a text, and texts are encoded as they were.
func TestWideTokenizer(t *testing.T) {
	raw, err := os.ReadFile("infer/demo/tokenizer.json")
	if err != nil {
		t.Fatal(err)
	}
	narrow, err := tokenizer.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	const vocab = 128256
	wide, err := wideTokenizer(raw, vocab)
	if err != nil {
		t.Fatal(err)
	}
	if wide.VocabSize() != vocab {
		t.Errorf("%d ids, want %d", wide.VocabSize(), vocab)
	}
	for id := range vocab {
		if wide.TokenString(id) == "" {
			t.Fatalf("id %d has no text", id)
		}
	}
	text := "Once upon a time w34x there was a w9 fox. <|im_end|> Ünïcode, 東京"
	got, want := wide.Encode(text, true), narrow.Encode(text, true)
	if len(got) != len(want) {
		t.Fatalf("%v, want %v", got, want)
	}
	for i := range got {
		if got[i] != want[i] {
			t.Fatalf("%v, want %v", got, want)
		}
	}
	if s := wide.Decode([]int{5000, 128255}, true); strings.Count(s, " ") < 1 || len(s) < 6 {
		t.Errorf("two words are %q", s)
	}
}

// TestServeRandom: a random model is served as any other.
func TestServeRandom(t *testing.T) {
	p := serve(t, t.TempDir(), "--model", "random:tiny", "--device", "cpu", "--kv-mib", "16")
	a, err := http.Post(p.url+"/v1/chat/completions", "application/json",
		strings.NewReader(`{"model": "random-tiny", "messages": [{"role": "user", "content": "What is a fox?"}], "max_tokens": 8, "temperature": 0}`))
	if err != nil {
		t.Fatal(err)
	}
	defer a.Body.Close()
	body, err := io.ReadAll(a.Body)
	if err != nil || a.StatusCode != http.StatusOK || !strings.Contains(string(body), `"completion_tokens":8`) {
		t.Errorf("%s: %s (%v)", a.Status, body, err)
	}
	p.stop()
}
