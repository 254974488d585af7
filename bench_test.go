package main

import (
	"log/slog"
	"testing"
)

// TestBenchHTTP runs streams and bare steps in turns at their fewest; times are not looked at.
func TestBenchHTTP(t *testing.T) {
	c := benchCmd{modelFlags: modelFlags{Model: "demo", Weights: "bfloat16", Threads: 2}}
	l, err := c.load(t.Context(), slog.New(slog.DiscardHandler), benchBasis(8), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	b := benchHTTP{l: l, clients: 3, prompt: 8, tokens: 300, rounds: 1}
	r, err := b.run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if r.Clients != 3 || r.Step <= 0 || r.Bare <= 0 {
		t.Errorf("%+v", r)
	}
}
