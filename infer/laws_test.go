package infer

import (
	"fmt"
	"sync"
	"testing"

	"bhive/kernels"

	"github.com/google/go-cmp/cmp"
)

// mixture is requests of all kinds.
func mixture(b *rig) []Request {
	seed := int64(7)
	with := func(f func(*Params)) Params {
		p := DefaultParams()
		p.MaxTokens, p.Seed = 12, &seed
		f(&p)
		return p
	}
	params := []Params{
		greedily(20),
		with(func(p *Params) {}),
		with(func(p *Params) { p.N, p.TopP = 3, 0.9 }),
		with(func(p *Params) { p.TopK, p.Temperature, p.Logprobs = 20, 0.8, 3 }),
		with(func(p *Params) { p.RepetitionPenalty, p.FrequencyPenalty, p.PresencePenalty = 1.3, 0.5, 0.2 }),
		with(func(p *Params) { p.MinP, p.LogitBias = 0.05, map[int]float32{17: -100, 15: 2} }),
		with(func(p *Params) { p.MinTokens, p.Stop = 6, []string{"the", ". "} }),
		with(func(p *Params) { p.PromptLogprobs, p.Logprobs, p.Temperature = true, 2, 0 }),
		with(func(p *Params) { p.IgnoreEOS, p.N = true, 2 }),
	}
	story := b.tok.Encode("One day, a little girl named Lily went to the park with her dog. She saw a big tree and a small bird. "+
		"The bird was sad because it could not find its nest.", false)
	var out []Request
	for i, p := range params {
		out = append(out, Request{ID: fmt.Sprint(i), Tenant: "t", Params: p, Prompt: story[:len(story)-i*3]})
	}
	return out
}

// together runs requests at once.
func together(t *testing.T, e *Engine, rs []Request) [][]choice {
	t.Helper()
	out := make([][]choice, len(rs))
	var wg sync.WaitGroup
	for i, r := range rs {
		g, err := e.Submit(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			var err error
			if out[i], err = all(t.Context(), g, r.Params.N); err != nil {
				t.Errorf("request %s: %v", r.ID, err)
			}
		})
	}
	wg.Wait()
	return out
}

func withoutCached(cs [][]choice) [][]choice {
	for i := range cs {
		for j := range cs[i] {
			cs[i][j].Usage.CachedPrompt = 0
		}
	}
	return cs
}

// TestBatchEqualsAlone: whatever runs beside a request, in whatever chunks, with prefix hits, preemption, overlap or graphs, its tokens
// and logprobs are those that it has alone, bit for bit.
func TestBatchEqualsAlone(t *testing.T) {
	for _, working := range []kernels.DType{kernels.F32, kernels.BF16} {
		t.Run(working.String(), func(t *testing.T) {
			b := newRig(t, working)
			needInvariant(t, b.be)
			rs := mixture(b)
			plain := b.start(t, Config{MaxSeqs: 1, MaxTokens: 512, NoPrefixCache: true, KVBlocks: 64})
			alone := make([][]choice, len(rs))
			for i, r := range rs {
				alone[i] = generate(t, plain, r)
			}
			configs := map[string]Config{
				"small chunks":  {MaxSeqs: 7, MaxTokens: 7, PromptRows: 3},
				"blocks of one": {MaxSeqs: 16, MaxTokens: 40, BlockTokens: 1, KVBlocks: 400},
				"preemption":    {MaxSeqs: 16, MaxTokens: 64, BlockTokens: 4, KVBlocks: 24},
			}
			if working == kernels.BF16 {
				configs = map[string]Config{
					"overlap": {MaxSeqs: 16, MaxTokens: 64, BlockTokens: 4, KVBlocks: 24, Overlap: true},
					"graphs":  {MaxSeqs: 16, MaxTokens: 512, Graphs: true, Overlap: true},
				}
			}
			for name, c := range configs {
				t.Run(name, func(t *testing.T) {
					if c.KVBlocks == 0 {
						c.KVBlocks = 200
					}
					e := b.start(t, c)
					for range 2 { // the second time with prefix hits
						got := together(t, e, rs)
						if diff := cmp.Diff(withoutCached(alone), withoutCached(got)); diff != "" {
							t.Fatalf("alone against together:\n%s", diff)
						}
					}
					s := e.Stats()
					if s.CachedTokens == 0 {
						t.Error("no prefix was found in the cache")
					}
					if name == "preemption" && s.Preemptions == 0 {
						t.Error("nothing was preempted")
					}
					if s.Running != 0 || s.Waiting != 0 || s.KVUsed != 0 {
						t.Errorf("at the end %+v", s)
					}
				})
			}
		})
	}
}
