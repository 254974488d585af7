package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"bhive/infer"
)

// compare shows a report's rows beside what the plan says of them.
func (c *planCmd) compare(p *infer.Plan, r *benchReport) error {
	rows := predict(p, r)
	tiers, err := predictTiers(p, r)
	if err != nil {
		return err
	}
	if len(rows) == 0 && len(tiers) == 0 {
		return errors.New("the report has no row that a plan speaks of")
	}
	if r.Ceilings.Link <= 0 {
		return errors.New("the report does not say what copies from the host reach")
	}
	if c.JSON {
		out := json.NewEncoder(os.Stdout)
		out.SetIndent("", "  ")
		return out.Encode(map[string]any{"rows": rows, "tiers": tiers, "model_bytes": map[string]int64{"measured": r.Bytes, "expected": p.Weights + p.A},
			"swap_ms": map[string]float64{"measured": 1e3 * float64(p.AdapterBytes) / r.Ceilings.Link, "expected": ms(p.SwapTime)}})
	}
	fmt.Printf("%s on %s, %s, bhive %s; predicted for %s: %s\n\n", r.Model, r.Device, r.Date, r.Version, p.Config.Device.Name, p.Config.Device.Source)
	w := table()
	fmt.Fprintln(w, "WHAT\tMEASURED\tEXPECTED")
	if r.Bytes > 0 {
		fmt.Fprintf(w, "weights and A's\t%s\t%s\n", binarySize(r.Bytes), binarySize(p.Weights+p.A))
	}
	fmt.Fprintf(w, "a swap of rank %d over the link\t%.2f ms\t%.2f ms\n", p.Config.Rank, 1e3*float64(p.AdapterBytes)/r.Ceilings.Link, ms(p.SwapTime))
	for _, x := range tiers {
		fmt.Fprintf(w, "requests for %d adapters: on the device, host, store\t%.0f, %.0f, %.0f %%\t%.0f, %.0f, %.0f %%\n", x.Adapters, 100*x.Measured[0], 100*x.Measured[1], 100*x.Measured[2],
			100*x.Expected[0], 100*x.Expected[1], 100*x.Expected[2])
	}
	if err := w.Flush(); err != nil || len(rows) == 0 {
		return err
	}
	fmt.Println()
	w = table()
	fmt.Fprintln(w, "ROW\tMEASURED\tEXPECTED\tMEASURED/EXPECTED\tFLOOR\tMEASURED/FLOOR")
	for _, x := range rows {
		fmt.Fprintf(w, "%s\t%.3f ms\t%.3f ms\t%.2f\t%.3f ms\t%.2f\n", x.Name, x.Measured, x.Expected, x.Measured/x.Expected, x.Floor, x.Measured/x.Floor)
	}
	return w.Flush()
}

// predicted is a measured row and what a plan says of it, in milliseconds.
type predicted struct {
	Name     string  `json:"name"`
	Measured float64 `json:"measured_ms"`
	Expected float64 `json:"expected_ms"`
	Floor    float64 `json:"floor_ms"`
}

// predict finds the rows that a plan speaks of: decode steps, prefill, the engine's steps, and first tokens of host-tier adapters.
func predict(p *infer.Plan, r *benchReport) []predicted {
	out := []predicted{}
	for _, row := range r.Rows {
		at := *p
		at.Config.Footprint.Rows = row.R
		x := predicted{Name: row.Name, Measured: row.Milliseconds}
		toMS := func(t time.Duration) float64 { return 1e3 * t.Seconds() }
		switch row.Kind {
		case rowDecode, rowSwaps, rowHTTP:
			s := at.Step(row.Batch, row.Distinct, row.Rank, row.Context)
			x.Expected, x.Floor = toMS(s.Expected), toMS(s.Floor)
		case rowPrefill:
			x.Floor = 1e3 * float64(row.Batch*row.Context) * at.Config.Footprint.TokenFlops(false) / at.Config.Device.Flops
			x.Expected = x.Floor / prefillEfficiency
		case rowFirstToken:
			x.Floor = 1e3 * float64(at.Config.Footprint.AdapterBytes(row.Rank)) / at.Config.Device.Link
			x.Expected = x.Floor
		default:
			continue
		}
		out = append(out, x)
	}
	return out
}

// predictedTiers are the shares of requests for adapters on the device, in host memory and in the store.
type predictedTiers struct {
	Adapters int        `json:"adapters"`
	Measured [3]float64 `json:"measured"`
	Expected [3]float64 `json:"expected"`
}

// predictTiers finds the S-LoRA rows of a popularity that a plan has. It expects the most popular adapters where the least recently used leave.
func predictTiers(p *infer.Plan, r *benchReport) ([]predictedTiers, error) {
	var out []predictedTiers
	for _, row := range r.Rows {
		alpha, zipf := row.More["zipf_alpha"]
		if row.Kind != rowSLoRA || !zipf {
			continue
		}
		c := p.Config
		c.Tenants, c.Rank, c.Alpha, c.AdapterBytes, c.HostBytes = row.Distinct, row.Rank, alpha, int64(row.More["device_bytes"]), int64(row.More["host_bytes"])
		t, err := infer.NewPlan(c)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", row.Name, err)
		}
		out = append(out, predictedTiers{row.Distinct, [3]float64{row.More["device_share"], row.More["host_share"], row.More["store_share"]},
			[3]float64{t.DeviceShare, t.HostShare, t.StoreShare}})
	}
	return out, nil
}

// prefillEfficiency is what prefill reaches of the rate of its products, by the H100's first measurements.
const prefillEfficiency = 0.65
