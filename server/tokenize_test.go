package server

import (
	"slices"
	"strings"
	"testing"
)

func TestTokenize(t *testing.T) {
	h := shared(t)
	c := h.serve(t, nil)
	h.publish(t, "tokenize-one", 4, 1)
	ask := func(body object) (out tokenizeResponse) {
		t.Helper()
		c.post("/tokenize", body).want(200).into(&out)
		if out.Count != len(out.Tokens) || out.MaxModelLen != h.deps.Engine.Config().MaxContext {
			t.Errorf("%s", mustJSON(out))
		}
		return out
	}
	text := func(tokens []int) string {
		t.Helper()
		var out struct{ Prompt string }
		c.post("/detokenize", object{"model": "demo", "tokens": tokens}).want(200).into(&out)
		return out.Prompt
	}
	const prompt = "Once upon a time, in Köln 🦊"
	got := ask(object{"model": "tokenize-one", "prompt": prompt, "return_token_strs": true})
	if want := h.deps.Tokenizer.Encode(prompt, true); !slices.Equal(got.Tokens, want) || len(got.Strings) != got.Count {
		t.Errorf("%s, want %v", mustJSON(got), want)
	}
	plain := ask(object{"prompt": prompt, "add_special_tokens": false})
	if back := text(plain.Tokens); back != prompt || plain.Strings != nil {
		t.Errorf("there and back: %q, %s", back, mustJSON(plain))
	}
	if got := ask(object{"prompt": "", "add_special_tokens": false}); got.Tokens == nil || got.Count != 0 || text(got.Tokens) != "" {
		t.Errorf("nothing: %s", mustJSON(got))
	}
	turns := []object{{"role": "user", "content": "What is a fox?"}}
	with, without := ask(object{"messages": turns}), ask(object{"messages": turns, "add_generation_prompt": false})
	if !strings.Contains(text(with.Tokens), "What is a fox?") || with.Count <= without.Count {
		t.Errorf("a conversation: %q, without the generation prompt %q", text(with.Tokens), text(without.Tokens))
	}

	c.post("/tokenize", object{}).wantError(400, "prompt", "")
	c.post("/tokenize", object{"prompt": "a", "messages": turns}).wantError(400, "messages", "")
	c.post("/tokenize", object{"messages": []object{}}).wantError(400, "messages", "")
	c.post("/tokenize", object{"prompt": "a", "model": "tokenize-none"}).wantError(404, "model", "model_not_found")
	c.post("/tokenize", object{"prompt": 5}).wantError(400, "prompt", "")
	c.post("/detokenize", object{}).wantError(400, "tokens", "")
	c.post("/detokenize", object{"tokens": []int{-1}}).wantError(400, "tokens", "")
	c.post("/detokenize", `{"tokens": [1, null]}`).wantError(400, "tokens", "")
	c.post("/v1/completions", `{"prompt": "a", "stop_token_ids": [1, null]}`).wantError(400, "stop_token_ids", "")
	c.post("/v1/completions", `{"prompt": "a", "stop": ["a", null]}`).wantError(400, "stop", "")
	c.post("/detokenize", object{"tokens": []int{1 << 30}}).wantError(400, "tokens", "")
	c.post("/detokenize", object{"tokens": []int{1}, "model": "tokenize-none"}).wantError(404, "model", "model_not_found")
	c.get("/ping").want(200)
	c.post("/ping", nil).want(200)
}

func TestDeleteModel(t *testing.T) {
	h := shared(t)
	c := h.serve(t, nil)
	h.publish(t, "gone", 4, 1)
	c.do("DELETE", "/v1/models/gone@1", nil).want(200) // its only version
	h.publish(t, "gone", 4, 2)
	c.do("DELETE", "/v1/models/demo", nil).wantError(400, "model", "")
	c.do("DELETE", "/v1/models/gone+gone", nil).wantError(400, "model", "")
	c.do("DELETE", "/v1/models/gone:0.5", nil).wantError(400, "model", "")
	c.do("DELETE", "/v1/models/gone", nil).want(200)
	c.do("DELETE", "/v1/models/gone", nil).wantError(404, "model", "model_not_found")
}
