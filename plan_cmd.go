package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"bhive/infer"
	"bhive/infer/checkpoint"
	"bhive/infer/demo"
)

// planCmd predicts a server's memory and speed; it needs no device.
type planCmd struct {
	Model     string   `short:"m" help:"demo, smollm2, a Hugging Face directory, a GGUF file, or random:SHAPE (llama-3-8b, llama-3-70b …)." default:"random:llama-3-8b"`
	ModelDirs []string `help:"Where models known by name lie." default:"models" placeholder:"DIR"`
	Weights   string   `help:"How the base's weights are kept: ${enum}." enum:"bfloat16,float32,int8" default:"bfloat16"`
	Tenants   int      `help:"Adapters." default:"1000" least:"0"`
	Rank      int      `short:"r" help:"Rank of the adapters." default:"16" least:"1"`
	Rows      int      `help:"Rows of each A." default:"64" least:"0"`
	Device    string   `help:"h100, h200, a100 or l40s; default: with --against the one that was measured, else h100." env:"BHIVE_PLAN_DEVICE"`
	Context   int      `help:"Tokens that a sequence has on average." default:"576" least:"1"`
	Batches   []int    `help:"Decode batches." default:"1,8,64,128" least:"1"`
	Alpha     float64  `help:"Exponent of the tenants' popularity (Zipf)." default:"1" env:"BHIVE_POPULARITY_ALPHA" least:"0"`

	MaxSeqs     int     `help:"Sequences that run at once." default:"64" least:"1"`
	MaxTokens   int     `help:"Tokens of a step." default:"512" least:"1"`
	Utilization float64 `name:"gpu-memory-utilization" help:"Share of the device's memory that is used." default:"0.9" above:"0" most:"1"`
	AdapterMiB  int64   `name:"adapter-mib" help:"Device memory for adapters, in MiB; default: a tenth of the device's." least:"0"`
	HostMiB     int64   `name:"adapter-host-mib" help:"Host memory for adapters, in MiB." default:"4096" least:"0"`

	MemoryGiB    float64 `name:"memory-gib" help:"The device's memory, in place of what is known of it." above:"0" most:"1e6"`
	BandwidthGBs float64 `name:"bandwidth-gbs" help:"The bandwidth of its memory, in GB/s, likewise." above:"0"`
	TFlops       float64 `name:"tflops" help:"Its bfloat16 products, in TFLOP/s, likewise." above:"0"`
	LinkGBs      float64 `name:"link-gbs" help:"Copies from the host, in GB/s, likewise." above:"0"`

	Against string `help:"Table of bench gpu --json: show each measured row beside what is predicted of it." placeholder:"FILE"`
	JSON    bool   `name:"json" help:"Print the plan as JSON."`
}

// Run predicts and prints.
func (c *planCmd) Run() error {
	if err := checkMiB(mibFlag{"adapter-mib", c.AdapterMiB}, mibFlag{"adapter-host-mib", c.HostMiB}); err != nil {
		return err
	}
	config, err := c.shape()
	if err != nil {
		return err
	}
	var measured *benchReport
	if c.Against != "" {
		if measured, err = readReport(c.Against); err != nil {
			return err
		}
	}
	device, err := c.device(measured)
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
	if measured != nil {
		return c.compare(p, measured)
	}
	if c.JSON {
		out := json.NewEncoder(os.Stdout)
		out.SetIndent("", "  ")
		return out.Encode(p)
	}
	return c.print(p)
}

// device is the one that is named, or that a table was measured on.
func (c *planCmd) device(measured *benchReport) (infer.DeviceProfile, error) {
	name := c.Device
	if name == "" && measured != nil {
		for word := range strings.FieldsFuncSeq(measured.Device, func(r rune) bool { return r == ' ' || r == ',' || r == '-' }) {
			if d, err := infer.ProfileOf(word); err == nil {
				return d, nil
			}
		}
	}
	return infer.ProfileOf(cmp.Or(name, "h100"))
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
