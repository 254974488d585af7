package infer

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"bhive/infer/checkpoint"
	"bhive/infer/tokenizer"
	"bhive/kernels"
)

// rig is a demo model on a device.
type rig struct {
	be    kernels.Backend
	model *Model
	tok   *tokenizer.Tokenizer
}

// newRig is one on the device under test.
func newRig(t testing.TB, working kernels.DType) *rig {
	t.Helper()
	return newRigOn(t, openDevice(t, working))
}

func newRigOn(t testing.TB, be kernels.Backend) *rig {
	t.Helper()
	cp, err := checkpoint.Open("demo")
	if err != nil {
		t.Fatal(err)
	}
	format := kernels.FormatF32
	if be.Info().Working == kernels.BF16 {
		format = kernels.FormatBF16
	}
	m, err := Load(t.Context(), be, cp, nil, LoadConfig{Format: format})
	if err != nil {
		t.Fatal(err)
	}
	tok := newRigTokenizer(t)
	t.Cleanup(func() {
		m.Close()
		cp.Close()
	})
	return &rig{be, m, tok}
}

func newRigTokenizer(t testing.TB) *tokenizer.Tokenizer {
	t.Helper()
	raw, err := os.ReadFile("demo/tokenizer.json")
	if err != nil {
		t.Fatal(err)
	}
	tok, err := tokenizer.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

// start runs an engine until the test ends.
func (b *rig) start(t testing.TB, c Config) *Engine {
	t.Helper()
	e, err := New(c, b.model, nil, nil, b.tok)
	if err != nil {
		t.Fatal(err)
	}
	b.runs(t, e, func() {})
	return e
}

// runs opens and runs an engine until the test ends; then is called after its end.
func (b *rig) runs(t testing.TB, e *Engine, then func()) {
	t.Helper()
	if err := e.Open(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- e.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
		e.Close()
		then()
	})
}

// choice is all that came for one choice.
type choice struct {
	Text   string
	IDs    []int
	Tokens []TokenInfo
	Prompt []TokenInfo
	Reason FinishReason
	Stop   string
	Usage  Usage
}

// all reads a generation to its end.
func all(ctx context.Context, g *Generation, n int) ([]choice, error) {
	out := make([]choice, n)
	for {
		d, err := g.Next(ctx)
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return out, err
		}
		c := &out[d.Index]
		c.Text += d.Text
		c.Tokens = append(c.Tokens, d.Tokens...)
		for _, x := range d.Tokens {
			c.IDs = append(c.IDs, x.ID)
		}
		c.Prompt = append(c.Prompt, d.Prompt...)
		c.Reason, c.Stop, c.Usage = d.FinishReason, d.StopReason, d.Usage
	}
}

func generate(t testing.TB, e *Engine, r Request) []choice {
	t.Helper()
	g, err := e.Submit(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	out, err := all(t.Context(), g, r.Params.N)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func greedily(tokens int) Params {
	p := DefaultParams()
	p.Temperature, p.MaxTokens = 0, tokens
	return p
}

type golden struct {
	Prompt []int     `json:"prompt"`
	IDs    []int     `json:"ids"`
	Margin []float64 `json:"margin"`
	Text   string    `json:"text"`
}

func readGolden(t testing.TB, name string) []golden {
	t.Helper()
	raw, err := os.ReadFile("testdata/demo/" + name)
	if err != nil {
		t.Fatal(err)
	}
	var g []golden
	if err := json.Unmarshal(raw, &g); err != nil {
		t.Fatal(err)
	}
	return g
}

func TestGreedyEqualsReference(t *testing.T) {
	b := newRig(t, kernels.F32)
	e := b.start(t, Config{MaxSeqs: 8, MaxTokens: 64, KVBytes: 16 << 20})
	for i, g := range readGolden(t, "base.greedy.json") {
		got := generate(t, e, Request{Prompt: g.Prompt, Params: greedily(len(g.IDs))})[0]
		compareGreedy(t, i, g, got)
	}
}

// compareGreedy holds a text against a reference up to the first token that the reference chose by less than the tolerance, 1e-3 of
// a logit range of about 30, or the first end of text.
func compareGreedy(t *testing.T, i int, g golden, got choice) {
	t.Helper()
	for j, want := range g.IDs {
		if g.Margin[j] < 0.03 || want == 0 || want == 2 {
			return
		}
		if j >= len(got.IDs) || got.IDs[j] != want {
			t.Errorf("prompt %d: token %d of %v is not the reference's %d (margin %v)", i, j, got.IDs, want, g.Margin[j])
			return
		}
	}
	if !strings.HasPrefix(g.Text, got.Text) {
		t.Errorf("prompt %d: text %q, want %q", i, got.Text, g.Text)
	}
}
