package server

import (
	"encoding/json"
	"strings"
	"testing"
)

type completionJSON struct {
	ID      string
	Object  string
	Model   string
	Choices []struct {
		Index        int
		Text         string
		FinishReason *string `json:"finish_reason"`
		Logprobs     *struct {
			Tokens        []string
			TokenLogprobs []*float64            `json:"token_logprobs"`
			TopLogprobs   []*map[string]float64 `json:"top_logprobs"`
			TextOffset    []int                 `json:"text_offset"`
		}
	}
	Usage *usageJSON
}

type object = map[string]any

func (c *client) complete(q object) completionJSON {
	c.t.Helper()
	var out completionJSON
	c.post("/v1/completions", q).want(200).into(&out)
	return out
}

func TestCompletion(t *testing.T) {
	c := serve(t)
	got := c.complete(object{"model": "demo", "prompt": "The fox", "max_tokens": 8, "temperature": 0})
	if len(got.Choices) != 1 || got.Choices[0].Text == "" || got.Choices[0].FinishReason == nil || got.Model != "demo" || !strings.HasPrefix(got.ID, "cmpl-") {
		t.Errorf("%+v", got)
	}
	if got.Usage.CompletionTokens < 1 || got.Usage.CompletionTokens > 8 || got.Usage.TotalTokens != got.Usage.PromptTokens+got.Usage.CompletionTokens {
		t.Errorf("usage %+v", got.Usage)
	}
	// The forms of a prompt say the same.
	ids := shared(t).deps.Tokenizer.Encode("The fox", true)
	for name, prompt := range map[string]any{"list": []string{"The fox"}, "ids": ids, "lists of ids": [][]int{ids}} {
		if other := c.complete(object{"model": "demo", "prompt": prompt, "max_tokens": 8, "temperature": 0}); other.Choices[0].Text != got.Choices[0].Text {
			t.Errorf("%s: %q, want %q", name, other.Choices[0].Text, got.Choices[0].Text)
		}
	}
	// Null fields are as absent ones; unknown fields are ignored; a stream's text is the same.
	raw := `{"model":"demo","prompt":"The fox","max_tokens":8,"temperature":0,"stop":null,"n":null,"logprobs":null,"stream":null,"stream_options":null,
		"logit_bias":null,"seed":null,"user":null,"suffix":null,"best_of":null,"echo":null,"top_k":null,"stop_token_ids":null,"unheard_of":{"a":1}}`
	var nulls completionJSON
	c.post("/v1/completions", raw).want(200).into(&nulls)
	if nulls.Choices[0].Text != got.Choices[0].Text {
		t.Errorf("with nulls: %q", nulls.Choices[0].Text)
	}
	text, usage := "", (*usageJSON)(nil)
	events := c.post("/v1/completions", object{"model": "demo", "prompt": "The fox", "max_tokens": 8, "temperature": 0, "stream": true,
		"stream_options": object{"include_usage": true}}).want(200).events()
	if last := events[len(events)-1]; last.Data != "[DONE]" {
		t.Fatalf("the last event is %q", last.Data)
	}
	for _, e := range events[:len(events)-1] {
		var chunk completionJSON
		if err := json.Unmarshal([]byte(e.Data), &chunk); err != nil {
			t.Fatal(err)
		}
		for _, choice := range chunk.Choices {
			text += choice.Text
		}
		if chunk.Usage != nil {
			usage = chunk.Usage
		}
	}
	if text != got.Choices[0].Text || usage == nil || usage.CompletionTokens != got.Usage.CompletionTokens {
		t.Errorf("streamed %q with usage %+v, want %q and %+v", text, usage, got.Choices[0].Text, got.Usage)
	}
}

// TestMaxTokensAbsent: without max_tokens a completion has 16 tokens or what room there is, a chat all the room.
func TestMaxTokensAbsent(t *testing.T) {
	c := serve(t)
	room := shared(t).deps.Engine.Config().MaxContext
	prompt := make([]int, room-4)
	for i := range prompt {
		prompt[i] = 300 + i%50
	}
	for n, want := range map[int]int{len(prompt): 4, 10: 16} {
		if got := c.complete(object{"model": "demo", "prompt": prompt[:n], "ignore_eos": true}); got.Usage.CompletionTokens != want {
			t.Errorf("a prompt of %d tokens: %d tokens follow, want %d", n, got.Usage.CompletionTokens, want)
		}
	}
	var chat struct{ Usage usageJSON }
	c.post("/v1/chat/completions", object{"model": "demo", "messages": []object{{"role": "user", "content": strings.Repeat("fox ", 400)}}, "ignore_eos": true}).want(200).into(&chat)
	if chat.Usage.PromptTokens+chat.Usage.CompletionTokens != room {
		t.Errorf("a chat has %+v, want %d together", chat.Usage, room)
	}
}
