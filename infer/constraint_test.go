package infer

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"bhive/infer/grammar"
	"bhive/kernels"
)

const personSchema = `{"type":"object","properties":{"name":{"type":"string","maxLength":12},"age":{"type":"integer","minimum":0,"maximum":130},
	"tags":{"type":"array","items":{"enum":["red","green","blue"]},"minItems":1,"maxItems":4}},"required":["name","age","tags"],"additionalProperties":false}`

// grammars binds grammars to the rig's tokens.
func (b *rig) grammars() *grammar.Vocabulary {
	return grammar.NewVocabulary(b.tok.VocabSize(), func(id int) []byte {
		if b.tok.IsSpecial(id) {
			return nil
		}
		return b.tok.TokenBytes(id)
	}, b.model.Config.EOS)
}

func isPerson(text string) bool {
	var p struct {
		Name *string
		Age  *int
		Tags []string
	}
	d := json.NewDecoder(strings.NewReader(text))
	d.DisallowUnknownFields()
	return d.Decode(&p) == nil && !d.More() && p.Name != nil && len([]rune(*p.Name)) <= 12 && p.Age != nil && *p.Age >= 0 && *p.Age <= 130 &&
		len(p.Tags) >= 1 && len(p.Tags) <= 4
}

// TestGrammar: the text follows the grammar at any temperature and in each choice, and does not depend on preemption.
func TestGrammar(t *testing.T) {
	b := newRig(t, kernels.F32)
	g, err := grammar.Compile(json.RawMessage(personSchema))
	if err != nil {
		t.Fatal(err)
	}
	bound := b.grammars().Bind(g)
	constrain := func() Constraint { return bound.New() }
	prompt := b.tok.Encode("Once upon a time", false)
	seed := int64(7)
	p := DefaultParams()
	p.Temperature, p.N, p.Seed, p.Logprobs = 1.5, 6, &seed, 2
	request := Request{Prompt: prompt, Params: p, Constrain: constrain}

	var texts [][]string
	preempted := int64(0)
	for _, c := range []Config{{MaxSeqs: 8, MaxTokens: 64, KVBlocks: 256, Overlap: true}, {MaxSeqs: 4, MaxTokens: 32, KVBlocks: 10, Overlap: true, NoPrefixCache: true}} {
		e := b.start(t, c)
		var of []string
		for _, got := range generate(t, e, request) {
			if got.Reason != FinishStop || !isPerson(got.Text) {
				t.Errorf("%q (%s)", got.Text, got.Reason)
			}
			joined := ""
			for _, x := range got.Tokens {
				joined += string(x.Bytes)
				if len(x.Top) != 2 {
					t.Errorf("%d alternatives", len(x.Top))
				}
			}
			if joined != got.Text {
				t.Errorf("the tokens make %q of %q", joined, got.Text)
			}
			of = append(of, got.Text)
		}
		texts = append(texts, of)
		preempted += int64(e.Stats().Preemptions)
	}
	if !slices.Equal(texts[0], texts[1]) {
		t.Errorf("preemption changes\n%q to\n%q", texts[0], texts[1])
	}
	if preempted == 0 {
		t.Error("nothing was preempted")
	}
	slices.Sort(texts[0])
	if len(slices.Compact(texts[0])) < 4 {
		t.Errorf("choices are alike: %q", texts[0])
	}

	e := b.start(t, Config{MaxSeqs: 8, MaxTokens: 64, KVBlocks: 256})
	t.Run("cut", func(t *testing.T) {
		r := request
		r.Params.MaxTokens = 5
		for _, got := range generate(t, e, r) {
			if got.Reason != FinishLength || !strings.HasPrefix(got.Text, "{") {
				t.Errorf("%q (%s)", got.Text, got.Reason)
			}
		}
	})
	t.Run("min tokens", func(t *testing.T) { // the grammar has the last word
		yes, err := grammar.Choice([]string{"yes", "no"})
		if err != nil {
			t.Fatal(err)
		}
		r := Request{Prompt: prompt, Params: greedily(20), Constrain: func() Constraint { return b.grammars().Bind(yes).New() }}
		r.Params.MinTokens = 10
		if got := generate(t, e, r)[0]; got.Text != "yes" && got.Text != "no" || got.Reason != FinishStop {
			t.Errorf("%q (%s)", got.Text, got.Reason)
		}
	})
	t.Run("stop string", func(t *testing.T) {
		r := request
		r.Params.N, r.Params.Stop = 1, []string{"age"}
		if got := generate(t, e, r)[0]; got.Reason != FinishStop || strings.Contains(got.Text, "age") || got.Stop != "age" {
			t.Errorf("%q (%s)", got.Text, got.Reason)
		}
	})
	t.Run("ignore eos", func(t *testing.T) {
		r := request
		r.Params.N, r.Params.IgnoreEOS = 1, true
		if got := generate(t, e, r)[0]; got.Reason != FinishStop || !isPerson(got.Text) {
			t.Errorf("%q (%s)", got.Text, got.Reason)
		}
	})
}

// BenchmarkGrammar is a decode step of 8 sequences, free and under a schema.
func BenchmarkGrammar(b *testing.B) {
	r := newRig(b, kernels.BF16)
	schema := `{"type":"array","items":` + personSchema + `,"minItems":40}`
	g, err := grammar.Compile(json.RawMessage(schema))
	if err != nil {
		b.Fatal(err)
	}
	bound := r.grammars().Bind(g)
	for _, mode := range []struct {
		name      string
		constrain func() Constraint
		overlap   bool
	}{{"free", nil, false}, {"free overlapped", nil, true}, {"schema", func() Constraint { return bound.New() }, true}} {
		b.Run(mode.name, func(b *testing.B) {
			times := &hostTimes{}
			e := r.start(b, Config{MaxSeqs: 8, KVBlocks: 600, Observer: times, Overlap: mode.overlap})
			p := DefaultParams()
			p.MaxTokens, p.IgnoreEOS = 400, true
			tokens := 0
			for b.Loop() {
				done := make(chan int)
				for i := range 8 {
					go func() {
						done <- generate(b, e, Request{Prompt: []int{5, 6, 7 + i}, Params: p, Constrain: mode.constrain})[0].Usage.Completion
					}()
				}
				for range 8 {
					tokens += <-done
				}
			}
			b.ReportMetric(float64(tokens)/b.Elapsed().Seconds(), "tokens/s")
			times.mu.Lock()
			defer times.mu.Unlock()
			b.ReportMetric(float64(times.host.Microseconds())/float64(max(times.steps, 1)), "µs-host/step")
		})
	}
}
