package finetune

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"bhive/adapters"
)

// TestSpecIsBounded: what a job's record and an optimizer step hold is bounded, whatever fits a body.
func TestSpecIsBounded(t *testing.T) {
	for _, c := range []struct {
		field  string
		change func(*JobSpec)
	}{
		{"gradient_accumulation_steps", func(s *JobSpec) { s.BatchSize, s.Accumulation = 4096, 4096 }},
		{"gradient_accumulation_steps", func(s *JobSpec) { s.BatchTokens, s.Accumulation = 1_000_000, 4096 }},
		{"sample_prompts[1]", func(s *JobSpec) { s.SamplePrompts = []string{"a", strings.Repeat("a", 1<<20)} }},
		{"target_modules", func(s *JobSpec) { s.TargetModules = slices.Repeat([]string{"q_proj"}, 1000) }},
	} {
		s := JobSpec{Name: "x"}
		c.change(&s)
		var f *FieldError
		if err := s.Validate(); !errors.As(err, &f) || f.Field != c.field {
			t.Errorf("%s: %v", c.field, err)
		}
	}
	s := JobSpec{Name: "x", BatchTokens: 1_000_000, Epochs: 3, Accumulation: 2}
	if err := s.Validate(); err != nil {
		t.Fatal(err)
	}
	p := preparation{spec: s, tokens: 20}
	p.options.Train = []Example{{IDs: make([]int32, 12)}, {IDs: make([]int32, 8)}}
	p.schedule(&adapters.Basis{Method: adapters.Orthonormal})
	if p.spec.BatchTokens != 20 || p.options.Schedule.Steps != 2 { // three epochs in steps of two
		t.Errorf("%d tokens of a batch, %d steps", p.spec.BatchTokens, p.options.Schedule.Steps)
	}
	chunks, _, next := p.options.Batching.batch(p.options.Train, &Order{n: 2, fixed: true}, 0, 64, 64)
	if len(chunks) != 2 || next != 4 {
		t.Errorf("a step of %d chunks and %d examples", len(chunks), next)
	}
}

// TestMessagesAreBounded: reading an example takes the square of its messages.
func TestMessagesAreBounded(t *testing.T) {
	line := `{"messages":[` + strings.Repeat(`{"role":"assistant","content":"a"},`, maxMessages) + `{"role":"assistant","content":"a"}]}`
	_, err := ReadExamples(t.Context(), strings.NewReader(line), demoEncoder(t), ReadOptions{MaxLength: 100, Vocab: 400})
	var e *ExamplesError
	if !errors.As(err, &e) || e.Lines[0].Field != "messages" || !strings.Contains(e.Lines[0].Message, "at most 1024") {
		t.Error(err)
	}
}
