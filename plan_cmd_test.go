package main

import (
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"bhive/infer"

	"github.com/google/go-cmp/cmp"
)

// TestReport: what bench gpu writes is what plan --against reads, and rows find their prediction.
func TestReport(t *testing.T) {
	want := benchReport{Model: "random-llama-3-8b", Device: "a card", R: 64, Ceilings: benchCeilings{Copy: 3e12, Product: 8e14, Link: 5e10}, Rows: []benchRow{
		{Name: "decode", Kind: rowDecode, Batch: 64, Distinct: 64, Rank: 16, Context: 576, R: 64, Milliseconds: 8.5},
		{Name: "without A", Kind: rowDecode, Batch: 1, Context: 576, Milliseconds: 5.5},
		{Name: "prefill", Kind: rowPrefill, Batch: 16, Context: 2048, R: 64, Milliseconds: 900},
		{Name: "first", Kind: rowFirstToken, Rank: 16, R: 64, Milliseconds: 1, More: map[string]float64{"added_p99_ms": 2}},
		{Name: "slora", Kind: rowSLoRA, Milliseconds: 9},
	}}
	file := filepath.Join(t.TempDir(), "bench.json")
	if err := want.write(file); err != nil {
		t.Fatal(err)
	}
	got, err := readReport(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(&want, got); diff != "" {
		t.Error(diff)
	}
	cc, err := infer.RandomConfig("llama-3-8b")
	if err != nil {
		t.Fatal(err)
	}
	device, err := infer.ProfileOf("h100")
	if err != nil {
		t.Fatal(err)
	}
	p, err := infer.NewPlan(infer.PlanConfig{Footprint: infer.Footprint{Config: cc, Rows: 64, WeightBits: 16, WorkBytes: 2}, Device: device, Rank: 16, Context: 1, MaxSeqs: 1, MaxTokens: 1,
		Utilization: 0.9, Alpha: 1})
	if err != nil {
		t.Fatal(err)
	}
	rows, err := predict(p, got)
	if err != nil {
		t.Fatal(err)
	}
	floors := map[string]float64{"decode": 7.59, "without A": 5.00, "prefill": 570, "first": 0.83}
	if len(rows) != len(floors) {
		t.Fatalf("%d rows: %+v", len(rows), rows)
	}
	for _, x := range rows {
		if math.Abs(x.Floor-floors[x.Name]) > 0.02*floors[x.Name] || x.Expected < x.Floor {
			t.Errorf("%+v, want a floor of %v", x, floors[x.Name])
		}
	}
	for _, bad := range []string{"", "[]", `{"rows": 3}`} {
		if err := os.WriteFile(file, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := readReport(file); err == nil || !strings.Contains(err.Error(), "no report") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// TestPlanAnyModel: a plan needs no device, and takes any checkpoint.
func TestPlanAnyModel(t *testing.T) {
	for _, model := range []string{"demo", "random:llama-3-70b", "random:llama-3-70b:8", "infer/testdata/tiny/qwen3"} {
		c := planCmd{Model: model}
		if _, err := c.shape(); err != nil {
			t.Errorf("%s: %v", model, err)
		}
	}
	for _, bad := range []string{"random:gpt", "nowhere"} {
		if _, err := (&planCmd{Model: bad}).shape(); err == nil {
			t.Errorf("%s is a model", bad)
		}
	}
}
