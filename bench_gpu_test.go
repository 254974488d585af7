package main

import (
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bhive/infer"
)

// TestBenchRefuses: what cannot be measured, or not be written, is said before anything is.
func TestBenchRefuses(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	for _, x := range []struct {
		rank, rows, batch int
		json, want        string
	}{
		{0, 16, 1, "", "rank 0"}, {17, 16, 1, "", "rank 17"}, {8, 16, 0, "", "not 0"}, {8, 16, -1, "", "not -1"}, {8, 16, 1, filepath.Join(t.TempDir(), "none", "x.json"), "--json"},
	} {
		gpu := benchGPUCmd{Model: "tiny", Device: "cpu", Rank: x.rank, Rows: x.rows, Budget: 64, Batches: []int{x.batch}, Only: []string{"steps"}, JSON: x.json}
		if err := gpu.Run(t.Context(), log); err == nil || !strings.Contains(err.Error(), x.want) || gpu.report.Rows != nil {
			t.Errorf("%+v: %d rows, %v", x, len(gpu.report.Rows), err)
		}
		if x.json != "" {
			continue
		}
		c := benchCmd{modelFlags: modelFlags{Model: "random:tiny", Device: "cpu", Weights: "bfloat16"}, Rank: x.rank, Rows: x.rows, Steps: 1, Prefill: 1, Batches: []int{x.batch}, Only: []string{"model"}}
		if err := c.Run(t.Context(), log); err == nil || !strings.Contains(err.Error(), x.want) {
			t.Errorf("%+v: %v", x, err)
		}
	}
}

// TestBenchGPU makes the whole table at small sizes on the CPU; times are not looked at.
func TestBenchGPU(t *testing.T) {
	file := filepath.Join(t.TempDir(), "bench.json")
	c := benchGPUCmd{Model: "tiny", Device: "cpu", Rank: 8, Rows: 16, Budget: 256, Quick: true, AdapterGiB: 1, HostGiB: 1, StoreGBs: 1, Alpha: 1, CV: 1, Popularity: infer.Zipf,
		Seconds: 0.3, TPOTTarget: []time.Duration{0, 2 * time.Millisecond}, JSON: file}
	if err := c.Run(t.Context(), slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	r, err := readReport(file)
	if err != nil {
		t.Fatal(err)
	}
	if r.Ceilings.Copy <= 0 || r.Ceilings.Product <= 0 || r.Ceilings.Link <= 0 || r.Model != "random-tiny" || r.R != 16 {
		t.Errorf("%+v", r)
	}
	kinds := map[string]int{}
	for _, row := range r.Rows {
		kinds[row.Kind]++
		if row.Invariant {
			kinds["invariant"]++
		}
		if row.Milliseconds <= 0 && row.Kind != rowFirstToken { // on the CPU a difference may be anything
			t.Errorf("%+v", row)
		}
	}
	for kind, least := range map[string]int{rowDecode: 6, rowPrefill: 3, rowSwaps: 2, rowFirstToken: 2, rowHTTP: 2, rowSLoRA: 3, rowCoserve: 5, rowPublish: 1, "invariant": 3} {
		if kinds[kind] < least {
			t.Errorf("%d rows of %s, want %d at least", kinds[kind], kind, least)
		}
	}
}
