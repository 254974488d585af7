package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"bhive/adapters"
	"bhive/infer"
	"bhive/kernels"
	"bhive/kernels/cuda"
)

// benchGPUCmd measures a GPU with a random model.
type benchGPUCmd struct {
	Model     string   `help:"Shape of a random model, or a model as serve takes it." default:"llama-3-8b"`
	ModelDirs []string `help:"Where models known by name lie." default:"models" placeholder:"DIR"`
	Device    string   `help:"Where to run: ${enum}." enum:"cuda,cpu" default:"cuda" env:"BHIVE_BENCH_GPU_DEVICE"`
	Rank      int      `help:"Rank of the adapters." default:"16" least:"1"`
	Rows      int      `help:"Rows of each A." default:"64" least:"1"`
	Batches   []int    `help:"Decode batches." default:"1,8,64,128" least:"1"`
	Budget    int      `help:"Tokens of a prefill step." default:"8192" least:"1"`
	Only      []string `help:"What to measure: ${enum}; default: all." enum:"steps,training,publish,coserve,plain,invariant,swaps,first-token,http,slora" placeholder:"PART" env:"BHIVE_BENCH_GPU_ONLY"`
	JSON      string   `name:"json" help:"Write the table as JSON; - is the standard output, which then has nothing else." placeholder:"FILE" env:"BHIVE_BENCH_GPU_JSON"`
	Quick     bool     `help:"Small sizes: to see that it runs, not how fast."`
	NoLt      bool     `help:"Without cuBLASLt."`
	NoOverlap bool     `help:"Start each kernel only when the one before it has ended."`
	Profile   bool     `help:"Which kernels the training steps' time goes to."`

	AdapterGiB float64          `name:"adapter-gib" help:"Device memory for adapters in engine rows, in GiB." default:"24" above:"0" most:"1e6"`
	HostGiB    float64          `name:"host-gib" help:"Host memory for adapters in the S-LoRA rows, in GiB; default: 64, or half of a smaller machine's." above:"0" most:"1e6"`
	StoreGBs   float64          `name:"store-gbs" help:"Bandwidth of the store that adapters beyond it come from, in GB/s." default:"2" least:"0"`
	Counts     []int            `help:"Numbers of adapters in the S-LoRA rows." default:"1,100,1000,10000" least:"1"`
	Alpha      float64          `help:"Exponent of the adapters' popularity." default:"1" env:"BHIVE_POPULARITY_ALPHA" above:"0"`
	Popularity infer.Popularity `help:"Zipf, or power, which is S-LoRA's own generator (uniform at alpha 1): ${enum}." enum:"zipf,power" default:"zipf"`
	CV         float64          `name:"cv" help:"Coefficient of variation of the times between arrivals." default:"1" above:"0"`
	Seconds    float64          `help:"Length of each phase of an S-LoRA or co-serving row." default:"12" above:"0"`
	SLoRASeqs  int              `name:"slora-seqs" help:"Sequences that run at once in the S-LoRA rows." default:"128" least:"1"`

	TPOTTarget []time.Duration `name:"tpot-target" help:"Targets of the co-serving rows, as serve takes them." default:"0s,10ms,20ms,50ms" least:"0"`
	Arrivals   float64         `help:"Requests a second in the co-serving rows, of all clients together." default:"16" above:"0"`

	sizes   benchSizes
	weights float64 // of the model that a step reads
	report  benchReport
	last    time.Time // when the row before was measured
}

// benchSizes are the lengths of the measurements.
type benchSizes struct {
	prompts, longest  int // prefill
	context, steps    int // decode
	streams           int // swaps, HTTP, and the batch with adapters
	prompt, tokens    int // of a stream
	swapHost          int // adapters that take turns
	perSecond         float64
	pairs             int // first tokens
	rounds            int // HTTP
	shortest, longish int // S-LoRA
	versions          int // published
	clients, text     int // beside training; tokens, where the target does not cut them
	light             infer.Arrivals
	examples, length  int // of training
}

func (c *benchGPUCmd) wants(part string) bool {
	return len(c.Only) == 0 || slices.Contains(c.Only, part)
}

// say prints where the output is not JSON.
func (c *benchGPUCmd) say(format string, a ...any) {
	if c.JSON != "-" {
		fmt.Printf(format+"\n", a...)
	}
}

func (c *benchGPUCmd) add(r benchRow) {
	r.Took = time.Since(c.last).Seconds()
	c.last = time.Now()
	c.report.Rows = append(c.report.Rows, r)
	c.say("%s", r.line())
}

// Run measures and prints as it goes. What was measured is written also where a later part fails.
func (c *benchGPUCmd) Run(ctx context.Context, log *slog.Logger) (err error) {
	if err := checkBench(c.Rank, c.Rows, append([]int{c.Budget}, c.Batches...)); err != nil {
		return err
	}
	if c.JSON != "" && c.JSON != "-" { // to be told now, and not when all has been measured
		f, err := os.OpenFile(c.JSON, os.O_CREATE|os.O_WRONLY, 0o644)
		if err != nil {
			return fmt.Errorf("--json: %w", err)
		}
		if err := f.Close(); err != nil {
			return fmt.Errorf("--json: %w", err)
		}
	}
	c.sizes = benchSizes{prompts: 16, longest: 2048, context: 512, steps: 128, streams: 64, prompt: 128, tokens: 400, swapHost: 32, perSecond: 100, pairs: 200,
		rounds: 3, shortest: 8, longish: 512, versions: 7, clients: 32, text: 200, light: infer.Arrivals{PerSecond: 4, Tokens: 16}, examples: 4, length: 1024}
	if c.Quick {
		c.sizes = benchSizes{prompts: 4, longest: 64, context: 32, steps: 8, streams: 4, prompt: 16, tokens: 40, swapHost: 8, perSecond: 100, pairs: 10,
			rounds: 1, shortest: 4, longish: 24, versions: 3, clients: 4, text: 12, light: infer.Arrivals{PerSecond: 20, Tokens: 4}, examples: 2, length: 16}
		c.Batches, c.Counts, c.Seconds, c.SLoRASeqs, c.Budget = []int{1, 4}, []int{1, 10, 50}, min(c.Seconds, 1), 8, min(c.Budget, 256)
		c.AdapterGiB, c.HostGiB, c.Arrivals = min(c.AdapterGiB, 0.25), 0.25, 40
	}
	c.report = benchReport{Version: version, Date: time.Now().Format(time.DateOnly), Command: "bhive " + strings.Join(os.Args[1:], " "), R: c.Rows}
	c.last = time.Now()
	if c.JSON != "" {
		defer func() {
			if e := c.report.write(c.JSON); err == nil {
				err = e
			}
		}()
	}
	flags := modelFlags{Model: c.Model, ModelDirs: c.ModelDirs, Device: c.Device, Weights: "bfloat16", GPU: func(g *cuda.Config) { g.NoLt, g.NoOverlap = c.NoLt, c.NoOverlap }}
	if slices.Contains(infer.RandomModels(), strings.SplitN(c.Model, ":", 2)[0]) {
		flags.Model = "random:" + c.Model
	}
	if flags.Backend, err = openBackend(&flags, log); err != nil {
		return err
	}
	defer func(b kernels.Backend) { err = errors.Join(err, b.Close()) }(flags.Backend)
	if err := c.withModel(ctx, log, flags, true, func(l *loaded) error {
		if err := c.stepRows(ctx, l, c.wants("steps"), true); err != nil {
			return err
		}
		if c.wants("training") && l.model.R() > 0 {
			if err := c.training(l.model, c.report.Ceilings.Product, c.weights); err != nil {
				return err
			}
		}
		if c.wants("publish") && l.model.R() > 0 {
			if err := c.publishRows(ctx, l); err != nil {
				return fmt.Errorf("publishing: %w", err)
			}
		}
		if c.wants("coserve") && l.model.R() > 0 {
			if err := c.coserveRows(ctx, l); err != nil {
				return fmt.Errorf("co-serving: %w", err)
			}
		}
		return c.engineRows(ctx, l)
	}); err != nil {
		return err
	}
	if c.wants("plain") {
		if err := c.withModel(ctx, log, flags, false, func(l *loaded) error { return c.stepRows(ctx, l, true, false) }); err != nil {
			return err
		}
	}
	if c.wants("invariant") {
		flags.BatchInvariant, flags.Backend = true, nil
		return c.withModel(ctx, log, flags, true, func(l *loaded) error { return c.invariantRows(ctx, l) })
	}
	return nil
}

// withModel loads the model, with or without A's, for f.
func (c *benchGPUCmd) withModel(ctx context.Context, log *slog.Logger, flags modelFlags, rows bool, f func(*loaded) error) error {
	basis := func(context.Context, string, adapters.Geometry, func() (*infer.Model, error)) (*adapters.Basis, error) {
		return nil, nil
	}
	if rows {
		basis = func(ctx context.Context, hash string, g adapters.Geometry, _ func() (*infer.Model, error)) (*adapters.Basis, error) {
			return adapters.NewBasis(ctx, adapters.BasisConfig{Method: adapters.Kaiming, R: c.Rows, Geometry: g, BaseHash: hash})
		}
	}
	quiet := slog.New(slog.DiscardHandler)
	if log.Enabled(ctx, slog.LevelDebug) {
		quiet = log
	}
	var free int64
	if flags.Backend != nil {
		free = flags.Backend.Info().MemoryFree
	}
	l, err := flags.load(ctx, quiet, basis, nil)
	if err != nil {
		return err
	}
	defer l.close()
	if free > 0 && rows {
		c.report.Bytes = free - l.backend.Info().MemoryFree
	}
	if c.report.Model == "" { // the first is what most rows are of
		c.report.Model, c.report.Device = l.name, l.backend.Info().Device
	}
	return f(l)
}

// stepRows measures steps without an engine, and the ceilings.
func (c *benchGPUCmd) stepRows(ctx context.Context, l *loaded, rows, withA bool) error {
	z, m := c.sizes, l.model
	slots := 0
	if withA {
		slots = z.streams
	}
	kvTokens := z.prompts * z.longest
	for _, n := range c.Batches {
		kvTokens = max(kvTokens, n*(z.context+z.steps+16))
	}
	if !rows {
		kvTokens, slots = 16, 0
	}
	b, err := infer.NewDeviceBench(m, kvTokens, slots, c.Rank)
	if err != nil {
		return err
	}
	defer b.Close()
	c.weights = float64(b.StepBytes(0, 0, 0)) / 2
	ceilings := &c.report.Ceilings
	if ceilings.Copy, ceilings.Product, err = b.Ceilings(); err != nil {
		return err
	}
	if ceilings.Link, err = b.Link(); err != nil {
		return err
	}
	c.say("%s, bf16, R = %d; %s\nceilings: copy %.0f GB/s, product of many tokens %.1f TFLOP/s, host to device %.1f GB/s", l.name, m.R(), l.backend.Info().Device,
		ceilings.Copy/1e9, ceilings.Product/1e12, ceilings.Link/1e9)
	if !rows {
		return nil
	}
	what := "with A"
	if !withA {
		what = "without A"
	}
	prefill := func(name string, distinct int, base time.Duration) (time.Duration, error) {
		t, err := b.Prefill(ctx, z.prompts, distinct, z.longest, c.Budget, 3)
		if err != nil {
			return 0, err
		}
		tokens := float64(z.prompts * z.longest)
		r := benchRow{Name: name, Kind: rowPrefill, Batch: z.prompts, Distinct: distinct, Context: z.longest, R: m.R(), Milliseconds: ms(t), TokensPerSecond: tokens / t.Seconds()}
		if distinct > 0 {
			r.Rank = c.Rank
		}
		if base > 0 {
			r.AgainstBase = float64(t) / float64(base)
		} else {
			r.FloorMS = 1e3 * tokens * c.footprint(l).TokenFlops(false) / ceilings.Product
		}
		c.add(r)
		return t, nil
	}
	plain, err := prefill(fmt.Sprintf("prefill %d × %d, %s", z.prompts, z.longest, what), 0, 0)
	if err != nil {
		return err
	}
	if withA {
		if _, err := prefill(fmt.Sprintf("prefill %d × %d, %d distinct adapters of rank %d", z.prompts, z.longest, z.prompts, c.Rank), min(z.prompts, z.streams), plain); err != nil {
			return err
		}
	}
	decode := func(name string, batch, distinct, rank int, base time.Duration) (time.Duration, error) {
		t, err := b.Decode(ctx, batch, distinct, z.context, z.steps)
		if err != nil {
			return 0, err
		}
		mean := z.context + z.steps/2
		r := benchRow{Name: name, Kind: rowDecode, Batch: batch, Distinct: distinct, Context: mean, R: m.R(), Milliseconds: ms(t), TokensPerSecond: float64(batch) / t.Seconds(),
			FloorMS: 1e3 * float64(b.StepBytes(batch, distinct, mean)) / ceilings.Copy}
		if distinct > 0 {
			r.Rank = rank
		}
		if base > 0 {
			r.AgainstBase = float64(t) / float64(base)
		}
		c.add(r)
		return t, nil
	}
	base := map[int]time.Duration{}
	for _, n := range c.Batches {
		if base[n], err = decode(fmt.Sprintf("decode B = %d, %s", n, what), n, 0, 0, 0); err != nil {
			return err
		}
	}
	if !withA {
		return nil
	}
	for _, k := range []struct{ batch, distinct, rank int }{{1, 1, c.Rank}, {z.streams, 1, c.Rank}, {z.streams, min(8, z.streams), c.Rank}, {z.streams, z.streams, c.Rank},
		{z.streams, z.streams, c.Rows}} {
		if base[k.batch] == 0 {
			continue
		}
		if k.rank != c.Rank {
			if err := b.SetRank(k.rank); err != nil {
				return err
			}
		}
		if _, err := decode(fmt.Sprintf("decode B = %d, %d distinct adapters of rank %d", k.batch, k.distinct, k.rank), k.batch, k.distinct, k.rank, base[k.batch]); err != nil {
			return err
		}
	}
	return nil
}

// footprint is the model's.
func (c *benchGPUCmd) footprint(l *loaded) infer.Footprint {
	return infer.Footprint{Config: l.model.Config, Rows: l.model.R(), WeightBits: 16, WorkBytes: l.backend.Info().Working.Size()}
}

// invariantRows measures a model whose results do not depend on the batch, against the rows before.
func (c *benchGPUCmd) invariantRows(ctx context.Context, l *loaded) error {
	z := c.sizes
	kvTokens := z.prompts * z.longest
	for _, n := range c.Batches {
		kvTokens = max(kvTokens, n*(z.context+z.steps+16))
	}
	b, err := infer.NewDeviceBench(l.model, kvTokens, z.streams, c.Rank)
	if err != nil {
		return err
	}
	defer b.Close()
	against := func(r benchRow) {
		r.Invariant, r.R = true, l.model.R()
		r.Name += ", batch-invariant"
		for _, x := range c.report.Rows {
			if x.Kind == r.Kind && x.Batch == r.Batch && x.Distinct == r.Distinct && x.Rank == r.Rank && x.R == r.R && x.Context == r.Context {
				r.AgainstBase = r.Milliseconds / x.Milliseconds
			}
		}
		c.add(r)
	}
	for _, k := range []struct{ batch, distinct int }{{1, 0}, {z.streams, 0}, {z.streams, z.streams}} {
		t, err := b.Decode(ctx, k.batch, k.distinct, z.context, z.steps)
		if err != nil {
			return err
		}
		r := benchRow{Name: fmt.Sprintf("decode B = %d", k.batch), Kind: rowDecode, Batch: k.batch, Distinct: k.distinct, Context: z.context + z.steps/2,
			Milliseconds: ms(t), TokensPerSecond: float64(k.batch) / t.Seconds()}
		if k.distinct > 0 {
			r.Name, r.Rank = fmt.Sprintf("%s, %d distinct adapters of rank %d", r.Name, k.distinct, c.Rank), c.Rank
		}
		against(r)
	}
	t, err := b.Prefill(ctx, z.prompts, 0, z.longest, c.Budget, 3)
	if err != nil {
		return err
	}
	against(benchRow{Name: fmt.Sprintf("prefill %d × %d", z.prompts, z.longest), Kind: rowPrefill, Batch: z.prompts, Context: z.longest, Milliseconds: ms(t),
		TokensPerSecond: float64(z.prompts*z.longest) / t.Seconds()})
	return nil
}
