package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"

	"bhive/infer"
	"bhive/infer/checkpoint"
	"bhive/infer/demo"
)

// planCmd predicts a server's memory and speed; it needs no device.
type planCmd struct {
	Model     string   `short:"m" help:"demo, smollm2, a Hugging Face directory, a GGUF file, or random:SHAPE (llama-3-8b, llama-3-70b …)." default:"random:llama-3-8b"`
	ModelDirs []string `help:"Where models known by name lie." default:"models" placeholder:"DIR"`
	Weights   string   `help:"How the base's weights are kept: ${enum}." enum:"bfloat16,float32,int8" default:"bfloat16"`
	Tenants   int      `help:"Adapters." default:"1000"`
	Rank      int      `short:"r" help:"Rank of the adapters." default:"16"`
	Rows      int      `help:"Rows of each A." default:"64"`
	Device    string   `help:"h100, h200, a100 or l40s." default:"h100"`
	Context   int      `help:"Tokens that a sequence has on average." default:"576"`
	Batches   []int    `help:"Decode batches." default:"1,8,64,128"`
	Alpha     float64  `help:"Exponent of the tenants' popularity (Zipf)." default:"1"`

	MaxSeqs     int     `help:"Sequences that run at once." default:"64"`
	MaxTokens   int     `help:"Tokens of a step." default:"512"`
	Utilization float64 `name:"gpu-memory-utilization" help:"Share of the device's memory that is used." default:"0.9"`
	AdapterMiB  int64   `name:"adapter-mib" help:"Device memory for adapters, in MiB; default: a tenth of the device's."`
	HostMiB     int64   `name:"adapter-host-mib" help:"Host memory for adapters, in MiB." default:"4096"`

	MemoryGiB    float64 `name:"memory-gib" help:"The device's memory, in place of what is known of it."`
	BandwidthGBs float64 `name:"bandwidth-gbs" help:"The bandwidth of its memory, in GB/s, likewise."`
	TFlops       float64 `name:"tflops" help:"Its bfloat16 products, in TFLOP/s, likewise."`
	LinkGBs      float64 `name:"link-gbs" help:"Copies from the host, in GB/s, likewise."`

	Against string `help:"Table of bench gpu --json: show each measured row beside what is predicted of it." placeholder:"FILE"`
	JSON    bool   `name:"json" help:"Print the plan as JSON."`
}

// Run predicts and prints.
func (c *planCmd) Run() error {
	config, err := c.shape()
	if err != nil {
		return err
	}
	device, err := infer.ProfileOf(c.Device)
	if err != nil {
		return err
	}
	own := func(at *float64, v, unit float64) {
		if v > 0 {
			*at = v * unit
			device.Source += "; as given"
		}
	}
	memory := float64(device.Memory)
	own(&memory, c.MemoryGiB, 1<<30)
	device.Memory = int64(memory)
	own(&device.Bandwidth, c.BandwidthGBs, 1e9)
	own(&device.Flops, c.TFlops, 1e12)
	own(&device.Link, c.LinkGBs, 1e9)
	f := infer.Footprint{Config: config, Rows: c.Rows, WeightBits: 16, WorkBytes: 2}
	switch c.Weights {
	case "float32":
		f.WeightBits, f.WorkBytes = 32, 4
	case "int8":
		f.WeightBits = 9 // a float32 scale every 32 elements
	}
	p, err := infer.NewPlan(infer.PlanConfig{Footprint: f, Device: device, Tenants: c.Tenants, Rank: c.Rank, Context: c.Context, Batches: c.Batches,
		MaxSeqs: c.MaxSeqs, MaxTokens: max(c.MaxTokens, c.MaxSeqs), Utilization: c.Utilization, AdapterBytes: c.AdapterMiB << 20, HostBytes: c.HostMiB << 20, Alpha: c.Alpha})
	if err != nil {
		return err
	}
	if c.Against != "" {
		r, err := readReport(c.Against)
		if err != nil {
			return err
		}
		return c.compare(p, r)
	}
	if c.JSON {
		out := json.NewEncoder(os.Stdout)
		out.SetIndent("", "  ")
		return out.Encode(p)
	}
	return c.print(p)
}

// shape is the architecture of the model that the flags name.
func (c *planCmd) shape() (checkpoint.Config, error) {
	if name, ok := strings.CutPrefix(c.Model, "random:"); ok {
		return infer.RandomConfig(name)
	}
	path, err := checkpoint.Resolve(c.Model, c.ModelDirs)
	if err != nil {
		return checkpoint.Config{}, err
	}
	var cp *checkpoint.Checkpoint
	if path == checkpoint.Demo {
		cp, err = checkpoint.OpenFS(demo.FS())
	} else {
		cp, err = checkpoint.Open(path)
	}
	if err != nil {
		return checkpoint.Config{}, err
	}
	defer cp.Close()
	return cp.Config(), nil
}

// binarySize is bytes as people write them.
func binarySize(n int64) string {
	switch x := float64(n); {
	case n < 0:
		return "-" + binarySize(-n)
	case x >= 1<<40:
		return fmt.Sprintf("%.2f TiB", x/(1<<40))
	case x >= 1<<30:
		return fmt.Sprintf("%.2f GiB", x/(1<<30))
	case x >= 1<<20:
		return fmt.Sprintf("%.1f MiB", x/(1<<20))
	default:
		return fmt.Sprintf("%d B", n)
	}
}

func (c *planCmd) print(p *infer.Plan) error {
	d := p.Config.Device
	fmt.Printf("%s, %s weights, R = %d; %d tenants of rank %d, %s each\n%s: %s, copy %.0f GB/s, %.0f TFLOP/s, host link %.0f GB/s (%s)\n\n", c.Model, c.Weights, c.Rows, c.Tenants, c.Rank,
		binarySize(p.AdapterBytes), d.Name, binarySize(d.Memory), d.Bandwidth/1e9, d.Flops/1e12, d.Link/1e9, d.Source)
	w := table()
	fmt.Fprintln(w, "DEVICE MEMORY\t\t")
	for _, x := range []struct {
		what  string
		bytes int64
		note  string
	}{
		{"weights", p.Weights, "one copy"},
		{"shared A's", p.A, fmt.Sprintf("%.2f %% of the weights", 100*float64(p.A)/float64(p.Weights))},
		{"activations", p.State, fmt.Sprintf("steps of up to %d tokens, %d sequences", p.Config.MaxTokens, p.Config.MaxSeqs)},
		{"adapters", p.Adapters, fmt.Sprintf("room for %d", p.Adapters/p.AdapterBytes)},
		{"headroom", p.Headroom, fmt.Sprintf("1 − %g", p.Config.Utilization)},
		{"KV cache", p.KV, fmt.Sprintf("%d tokens, %d sequences of %d", p.KVTokens, p.Sequences, p.Config.Context)},
	} {
		fmt.Fprintf(w, "  %s\t%s\t%s\n", x.what, binarySize(x.bytes), x.note)
	}
	if p.KV <= 0 {
		fmt.Fprintln(w, "  it does not fit\t\t")
	}
	fmt.Fprintf(w, "\t\t\nADAPTERS\t\tof requests, popularity i^-%g\n", p.Config.Alpha)
	fmt.Fprintf(w, "  on the device\t%d\t%.1f %%\n  in host memory\t%d\t%.1f %%\n  in the store\t%d\t%.1f %%\n  all of them\t%s\t\n", p.OnDevice, 100*p.DeviceShare, p.OnHost, 100*p.HostShare, p.InStore, 100*p.StoreShare, binarySize(p.StoreBytes))
	fmt.Fprintf(w, "  a swap over the link\t%.2f ms\tat most %.0f a second", 1e3*p.SwapTime.Seconds(), p.SwapsPerSecond)
	if p.RequestsPerSecondByLink > 0 {
		fmt.Fprintf(w, "; full at %.0f requests a second", p.RequestsPerSecondByLink)
	}
	fmt.Fprintln(w)
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Println()
	w = table()
	fmt.Fprintln(w, "DECODE STEP\tREADS\tFLOOR\tEXPECTED\tTOK/S")
	for _, s := range p.Steps {
		fmt.Fprintf(w, "%s\t%s\t%.2f ms\t%.2f ms\t%.0f\n", stepName(s), binarySize(s.Bytes), 1e3*s.Floor.Seconds(), 1e3*s.Expected.Seconds(), s.TokensPerSecond)
	}
	fmt.Fprintf(w, "prefill\t\t\t\tat most %.0f\n", p.PrefillFloor)
	return w.Flush()
}

func stepName(s infer.PlannedStep) string {
	name := fmt.Sprintf("batch %d", s.Batch)
	switch s.Distinct {
	case 0:
		return name + ", base"
	case 1:
		return fmt.Sprintf("%s, one adapter of rank %d", name, s.Rank)
	}
	return fmt.Sprintf("%s, %d adapters of rank %d", name, s.Distinct, s.Rank)
}

// compare shows a report's rows beside what the plan says of them.
func (c *planCmd) compare(p *infer.Plan, r *benchReport) error {
	rows, err := predict(p, r)
	if err != nil {
		return err
	}
	if c.JSON {
		out := json.NewEncoder(os.Stdout)
		out.SetIndent("", "  ")
		return out.Encode(rows)
	}
	fmt.Printf("%s on %s, %s, bhive %s; predicted for %s: %s\n\n", r.Model, r.Device, r.Date, r.Version, p.Config.Device.Name, p.Config.Device.Source)
	w := table()
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
func predict(p *infer.Plan, r *benchReport) ([]predicted, error) {
	var out []predicted
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
	if len(out) == 0 {
		return nil, fmt.Errorf("the report has no row that a plan speaks of")
	}
	return out, nil
}

// prefillEfficiency is what prefill reaches of the rate of its products, by the H100's first measurements.
const prefillEfficiency = 0.65
