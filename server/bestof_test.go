package server

import (
	"slices"
	"strings"
	"testing"
)

// The best of some are those of the highest mean logprob among all.
func TestBestOf(t *testing.T) {
	c := serve(t)
	q := object{"model": "demo", "prompt": []string{"The fox", "A bee"}, "max_tokens": 6, "temperature": 1, "seed": 3, "logprobs": 0, "n": 5}
	all := c.complete(q)
	type scored struct {
		text string
		mean float64
	}
	var want []string
	for prompt := range 2 {
		var list []scored
		for _, choice := range all.Choices[5*prompt : 5*prompt+5] {
			sum := 0.0
			for _, p := range choice.Logprobs.TokenLogprobs {
				sum += *p
			}
			list = append(list, scored{choice.Text, sum / float64(len(choice.Logprobs.TokenLogprobs))})
		}
		slices.SortStableFunc(list, func(a, b scored) int {
			if a.mean > b.mean {
				return -1
			}
			return 1
		})
		want = append(want, list[0].text, list[1].text)
	}
	q["n"], q["best_of"] = 2, 5
	delete(q, "logprobs")
	best := c.complete(q)
	var got []string
	for i, choice := range best.Choices {
		if got = append(got, choice.Text); choice.Index != i || choice.Logprobs != nil {
			t.Errorf("choice %d: %+v", i, choice)
		}
	}
	if !slices.Equal(got, want) || best.Usage.CompletionTokens != all.Usage.CompletionTokens {
		t.Errorf("%q with usage %+v, want %q and %+v", got, best.Usage, want, all.Usage)
	}
}

// Each of many choices shows the prompt with its logprobs.
func TestEchoOfMany(t *testing.T) {
	c := serve(t)
	got := c.complete(object{"model": "demo", "prompt": "The fox", "max_tokens": 3, "temperature": 1, "logprobs": 1, "echo": true, "n": 3})
	for _, choice := range got.Choices {
		if text := strings.Join(choice.Logprobs.Tokens, ""); text != choice.Text || !strings.HasPrefix(text, "The fox") || choice.Logprobs.TokenLogprobs[0] != nil {
			t.Errorf("%q with the tokens %q", choice.Text, choice.Logprobs.Tokens)
		}
	}
}
