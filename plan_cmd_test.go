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
		{Name: "slora", Kind: rowSLoRA, Distinct: 10000, Rank: 16, Milliseconds: 9, More: map[string]float64{"zipf_alpha": 1, "device_bytes": 24 << 30, "host_bytes": 64 << 30,
			"device_share": 0.7, "host_share": 0.2, "store_share": 0.1}},
		{Name: "power", Kind: rowSLoRA, Milliseconds: 9},
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
	rows := predict(p, got)
	floors := map[string]float64{"decode": 7.59, "without A": 5.00, "prefill": 570, "first": 0.83}
	if len(rows) != len(floors) {
		t.Fatalf("%d rows: %+v", len(rows), rows)
	}
	for _, x := range rows {
		if math.Abs(x.Floor-floors[x.Name]) > 0.02*floors[x.Name] || x.Expected < x.Floor {
			t.Errorf("%+v, want a floor of %v", x, floors[x.Name])
		}
	}
	tiers, err := predictTiers(p, got)
	if err != nil || len(tiers) != 1 || tiers[0].Measured != [3]float64{0.7, 0.2, 0.1} {
		t.Fatalf("%+v, %v", tiers, err)
	}
	if e := tiers[0].Expected; math.Abs(e[0]-0.710) > 1e-3 || math.Abs(e[1]-0.133) > 1e-3 || math.Abs(e[0]+e[1]+e[2]-1) > 1e-9 {
		t.Errorf("requests by tiers: %v", e)
	}
	for name, want := range map[string]string{"NVIDIA H200, 132 multiprocessors": "h200", "NVIDIA A100-SXM4-80GB": "a100", "a card": "h100"} {
		if d, err := (&planCmd{}).device(&benchReport{Device: name}); err != nil || d.Name != want {
			t.Errorf("%s is planned for as %s, %v", name, d.Name, err)
		}
	}
	if d, err := (&planCmd{Device: "l40s"}).device(&benchReport{Device: "NVIDIA H200"}); err != nil || d.Name != "l40s" {
		t.Errorf("the device that is named: %s, %v", d.Name, err)
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

// TestMeasuredTables holds the committed tables of bench gpu: each is of one whole run, and what a plan expects of its steps is near what was measured.
func TestMeasuredTables(t *testing.T) {
	files, err := filepath.Glob("kernels/bench-*.json")
	if err != nil {
		t.Fatal(err)
	}
	if len(files) == 0 {
		t.Skip("no table is committed")
	}
	for _, file := range files {
		r, err := readReport(file)
		if err != nil {
			t.Fatal(err)
		}
		kinds := map[string]int{}
		for _, row := range r.Rows {
			kinds[row.Kind]++
			if row.Invariant {
				kinds["invariant"]++
			}
			if row.Kind == rowDecode && row.R == 0 {
				kinds["plain"]++
			}
		}
		for _, kind := range []string{rowDecode, rowPrefill, rowSwaps, rowFirstToken, rowHTTP, rowSLoRA, "training", "invariant", "plain"} {
			if kinds[kind] == 0 {
				t.Errorf("%s: no row of %s", file, kind)
			}
		}
		c := planCmd{Model: "random:" + strings.TrimPrefix(r.Model, "random-"), Rows: r.R}
		shape, err := c.shape()
		if err != nil {
			t.Fatal(err)
		}
		device, err := c.device(r)
		if err != nil {
			t.Fatal(err)
		}
		p, err := infer.NewPlan(infer.PlanConfig{Footprint: infer.Footprint{Config: shape, Rows: r.R, WeightBits: 16, WorkBytes: 2}, Device: device, Rank: 16, Context: 1, MaxSeqs: 1,
			MaxTokens: 1, Utilization: 0.9})
		if err != nil {
			t.Fatal(err)
		}
		if bytes := float64(p.Weights + p.A); math.Abs(float64(r.Bytes)/bytes-1) > 0.05 {
			t.Errorf("%s: the model took %d bytes, planned %.0f", file, r.Bytes, bytes)
		}
		for _, x := range predict(p, r) {
			if kind := kindOf(r, x.Name); (kind == rowDecode || kind == rowPrefill) && !strings.Contains(x.Name, "invariant") && (x.Measured > 1.3*x.Expected || x.Measured < 0.8*x.Expected) {
				t.Errorf("%s: %s took %.3f ms, expected %.3f", file, x.Name, x.Measured, x.Expected)
			}
		}
	}
}

// kindOf is the kind of a report's row.
func kindOf(r *benchReport, name string) string {
	for _, row := range r.Rows {
		if row.Name == name {
			return row.Kind
		}
	}
	return ""
}

// TestPlanAgainst: a table of one part is enough, and one without what is compared with is an error and no infinite number.
func TestPlanAgainst(t *testing.T) {
	tiers := benchRow{Name: "slora", Kind: rowSLoRA, Distinct: 100, Rank: 16, More: map[string]float64{"zipf_alpha": 1, "device_bytes": 1 << 30, "host_bytes": 1 << 30}}
	decode := benchRow{Name: "decode", Kind: rowDecode, Batch: 1, Context: 500, Milliseconds: 6}
	for name, x := range map[string]struct {
		report benchReport
		want   string
	}{
		"tiers alone": {benchReport{Ceilings: benchCeilings{Link: 5e10}, Rows: []benchRow{tiers}}, ""},
		"steps alone": {benchReport{Ceilings: benchCeilings{Link: 5e10}, Rows: []benchRow{decode}}, ""},
		"neither":     {benchReport{Ceilings: benchCeilings{Link: 5e10}, Rows: []benchRow{{Kind: rowCoserve}}}, "no row"},
		"no ceiling":  {benchReport{Rows: []benchRow{decode}}, "copies"},
	} {
		for _, asJSON := range []bool{false, true} {
			c := planCmd{Model: "random:llama-3-8b", Weights: "bfloat16", Tenants: 10, Rank: 16, Rows: 64, Context: 576, Batches: []int{1}, Alpha: 1, MaxSeqs: 64, MaxTokens: 512, Utilization: 0.9,
				HostMiB: 4096, Against: filepath.Join(t.TempDir(), "bench.json"), JSON: asJSON}
			if err := x.report.write(c.Against); err != nil {
				t.Fatal(err)
			}
			if err := c.Run(); x.want == "" && err != nil || x.want != "" && (err == nil || !strings.Contains(err.Error(), x.want)) {
				t.Errorf("%s, JSON %v: %v, want %q", name, asJSON, err, x.want)
			}
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
