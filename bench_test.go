package main

import (
	"log/slog"
	"testing"
)

// TestBenches runs what takes turns at its fewest; times are not looked at.
func TestBenches(t *testing.T) {
	c := benchCmd{modelFlags: modelFlags{Model: "demo", Weights: "bfloat16", Threads: 2}}
	l, err := c.load(t.Context(), slog.New(slog.DiscardHandler), benchBasis(8), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	grammar := benchGrammar{l: l, streams: 2, tokens: 20, rounds: 1}
	if g, err := grammar.run(t.Context()); err != nil || g.Streams != 2 || g.Step <= 0 || g.Free <= 0 || g.Mask <= 0 {
		t.Errorf("%+v, %v", g, err)
	}
	b := benchHTTP{l: l, clients: 3, prompt: 8, tokens: 300, rounds: 1}
	r, err := b.run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if r.Clients != 3 || r.Step <= 0 || r.Bare <= 0 {
		t.Errorf("%+v", r)
	}
}
