package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"
)

// benchReport is the table of bench gpu.
type benchReport struct {
	Model    string        `json:"model"`
	Device   string        `json:"device"`
	Version  string        `json:"version"`
	Date     string        `json:"date"`
	Command  string        `json:"command"`
	R        int           `json:"r"`                     // rows of each A
	Bytes    int64         `json:"model_bytes,omitempty"` // of device memory that the weights and A's took
	Ceilings benchCeilings `json:"ceilings"`
	Rows     []benchRow    `json:"rows"`
}

// benchCeilings are measured in the run itself.
type benchCeilings struct {
	Copy    float64 `json:"copy_bytes_per_second"` // read and written
	Product float64 `json:"product_flops"`         // of many tokens with a layer's widest weight
	Link    float64 `json:"host_to_device_bytes_per_second"`
}

// Kinds of rows.
const (
	rowDecode     = "decode"
	rowPrefill    = "prefill"
	rowSwaps      = "swaps"
	rowFirstToken = "first_token"
	rowHTTP       = "http"
	rowSLoRA      = "slora"
)

// benchRow is one measurement. What a row has not is absent.
type benchRow struct {
	Name            string             `json:"name"`
	Kind            string             `json:"kind"`
	Batch           int                `json:"batch,omitempty"`
	Distinct        int                `json:"distinct_adapters,omitempty"`
	Rank            int                `json:"rank,omitempty"`
	Context         int                `json:"context,omitempty"` // tokens, on average; of prefill: of a prompt
	R               int                `json:"r,omitempty"`
	Invariant       bool               `json:"batch_invariant,omitempty"`
	Milliseconds    float64            `json:"ms"` // the row's own time: mean or median
	TokensPerSecond float64            `json:"tokens_per_second,omitempty"`
	FloorMS         float64            `json:"floor_ms,omitempty"` // bytes or operations over the ceiling measured in the same run
	AgainstBase     float64            `json:"against_base,omitempty"`
	More            map[string]float64 `json:"more,omitempty"` // further figures by name, with their unit in it
	Note            string             `json:"note,omitempty"`
	Took            float64            `json:"took_seconds,omitempty"` // since the row before, with all preparation
}

// line is a row of the table on a terminal.
func (r benchRow) line() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%-62s %9.3f ms", r.Name, r.Milliseconds)
	if r.TokensPerSecond > 0 {
		fmt.Fprintf(&b, " %9.0f tok/s", r.TokensPerSecond)
	}
	if r.FloorMS > 0 {
		fmt.Fprintf(&b, "  floor %7.3f ms, %3.0f %%", r.FloorMS, 100*r.FloorMS/r.Milliseconds)
	}
	if r.AgainstBase > 0 {
		fmt.Fprintf(&b, "  %+.1f %% of the base", 100*(r.AgainstBase-1))
	}
	if r.Note != "" {
		fmt.Fprintf(&b, "  %s", r.Note)
	}
	return b.String()
}

// write writes the report to a file; - is the standard output.
func (r *benchReport) write(file string) error {
	out, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("the report: %w", err)
	}
	out = append(out, '\n')
	if file == "-" {
		_, err = os.Stdout.Write(out)
		return err
	}
	return os.WriteFile(file, out, 0o644)
}

// readReport reads what write wrote.
func readReport(file string) (*benchReport, error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var r benchReport
	if err := json.Unmarshal(raw, &r); err != nil {
		return nil, fmt.Errorf("%s is no report of bench gpu --json: %w", file, err)
	}
	return &r, nil
}

func ms(d time.Duration) float64 { return 1e3 * d.Seconds() }
