package infer

import (
	"math"
	"testing"
)

// TestWorkload holds the draws' means, spreads and shares against the distributions.
func TestWorkload(t *testing.T) {
	near := func(what string, got, want, tolerance float64) {
		t.Helper()
		if math.Abs(got-want) > tolerance*math.Abs(want) {
			t.Errorf("%s: %.4f, want %.4f", what, got, want)
		}
	}
	const n = 40000
	for _, cv := range []float64{0.5, 1, 2, 4} {
		ws, err := Workload(WorkloadConfig{Adapters: 100, Requests: n, Rate: 20, CV: cv, Alpha: 1, Popularity: Zipf, Shortest: 8, Longest: 512, Seed: 3})
		if err != nil {
			t.Fatal(err)
		}
		var sum, squares, prompts, outputs float64
		counts := make([]float64, 100)
		last := 0.0
		for i, w := range ws {
			gap := w.At.Seconds() - last
			if gap < 0 || w.Prompt < 8 || w.Prompt > 512 || w.Output < 8 || w.Output > 512 {
				t.Fatalf("request %d: %+v", i, w)
			}
			last = w.At.Seconds()
			sum, squares = sum+gap, squares+gap*gap
			prompts, outputs = prompts+float64(w.Prompt), outputs+float64(w.Output)
			counts[w.Adapter]++
		}
		mean := sum / n
		near("mean gap", mean, 0.05, 0.06)
		near("spread of the gaps", math.Sqrt(squares/n-mean*mean)/mean, cv, 0.08)
		near("prompts", prompts/n, 260, 0.02)
		near("texts", outputs/n, 260, 0.02)
		near("share of the first adapter", counts[0]/n, 1/5.18738, 0.05)
		near("first against second", counts[0]/counts[1], 2, 0.1)
	}
	for _, x := range []struct{ alpha, below float64 }{{1, 0.5}, {2, 0.25}} { // the share of the first half of the adapters: 0.5^alpha
		ws, err := Workload(WorkloadConfig{Adapters: 1000, Requests: n, Rate: 1, CV: 1, Alpha: x.alpha, Popularity: Power, Shortest: 1, Longest: 1})
		if err != nil {
			t.Fatal(err)
		}
		first := 0.0
		for _, w := range ws {
			if w.Adapter < 500 {
				first++
			}
		}
		near("first half", first/n, x.below, 0.03)
	}
	for _, bad := range []WorkloadConfig{
		{}, {Adapters: 1, Rate: 1, CV: 1, Alpha: 1, Popularity: "flat", Shortest: 1, Longest: 1}, {Adapters: 1, Rate: math.NaN(), CV: 1, Alpha: 1, Popularity: Zipf, Shortest: 1, Longest: 1},
		{Adapters: 1, Rate: 1, CV: 0, Alpha: 1, Popularity: Zipf, Shortest: 1, Longest: 1}, {Adapters: 1, Rate: 1, CV: 1, Alpha: 1, Popularity: Zipf, Shortest: 2, Longest: 1},
	} {
		if _, err := Workload(bad); err == nil {
			t.Errorf("%+v is accepted", bad)
		}
	}
}
