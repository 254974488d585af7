package main

import "testing"

// TestTuneQuery: numbers go out as the server reads them: whole ones without an exponent, and every digit of a seed.
func TestTuneQuery(t *testing.T) {
	c := tuneCmd{Name: "x", Seed: 9007199254740993, MaxSteps: 1000000, Epochs: 2.5, Rank: 8, LearningRate: "auto"}
	q := c.query()
	for name, want := range map[string]string{"seed": "9007199254740993", "max_steps": "1000000", "epochs": "2.5", "rank": "8", "batch_size": "", "alpha": ""} {
		if got := q.Get(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
}
