package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"bhive/kernels"
	"bhive/kernels/cpu"
	"bhive/kernels/cuda"
)

// options are the flags; their defaults come from the environment where BHIVE_QUALITY_… is set.
type options struct {
	model, data, out string
	device           string
	precision        string
	train, test      int // examples
	sweep            int // training examples of the sweep
	length           int // longest example, tokens
	batch            int // examples of an optimizer step
	tokens           int // of a training pass: as many lanes as fit go through the model at once
	rows             int // of the basis
	seeds            int
	sweepRanks       []int
	ranks            []int
	factors          []float64 // of the rate auto, in the table
	limit            time.Duration
	only             string
	earlier          string
}

func env(name, otherwise string) string {
	if v := os.Getenv("BHIVE_QUALITY_" + name); v != "" {
		return v
	}
	return otherwise
}

func parse() (o options, err error) {
	flag.StringVar(&o.model, "model", env("MODEL", "models/SmolLM2-135M-Instruct.Q4_1.gguf"), "GGUF, or demo")
	flag.StringVar(&o.data, "data", env("DATA", "../shared/data"), "directory of gsm8k_train.jsonl and gsm8k_test.jsonl")
	flag.StringVar(&o.out, "out", env("OUT", "."), "directory of quality.csv, data.json and base/")
	flag.StringVar(&o.device, "device", "cpu", "cpu or cuda")
	flag.StringVar(&o.precision, "precision", "bfloat16", "bfloat16 or float32")
	flag.IntVar(&o.train, "train", 2000, "training examples; one epoch")
	flag.IntVar(&o.sweep, "sweep", 1000, "training examples of the sweep")
	flag.IntVar(&o.test, "test", 200, "held-out examples")
	flag.IntVar(&o.length, "length", 512, "longest example in tokens; longer ones are left out")
	flag.IntVar(&o.batch, "batch", 16, "examples of an optimizer step")
	flag.IntVar(&o.tokens, "tokens", 16384, "tokens of a pass; several runs share one")
	flag.IntVar(&o.rows, "rows", 64, "rows of the basis")
	flag.IntVar(&o.seeds, "seeds", 3, "seeds, of the basis and of the order")
	sweepRanks := flag.String("sweep-ranks", "4,16,64", "ranks of the sweep")
	ranks := flag.String("ranks", "8,16,32,64", "ranks of the table")
	flag.DurationVar(&o.limit, "limit", time.Hour, "time after which nothing more is begun, and what runs is dropped")
	factors := flag.String("factors", "0.5,2", "factors of the rate auto that the table tries with the first seed")
	flag.StringVar(&o.earlier, "earlier", "", "quality.csv of a run that was cut: its lines are kept, and not trained again")
	flag.StringVar(&o.only, "only", "export,base,table", "parts to run: export, base, sweep, table")
	flag.Parse()
	if o.sweepRanks, err = numbers(*sweepRanks, strconv.Atoi); err != nil {
		return o, fmt.Errorf("-sweep-ranks: %w", err)
	}
	if o.ranks, err = numbers(*ranks, strconv.Atoi); err != nil {
		return o, fmt.Errorf("-ranks: %w", err)
	}
	if o.factors, err = numbers(*factors, func(s string) (float64, error) { return strconv.ParseFloat(s, 64) }); err != nil {
		return o, fmt.Errorf("-factors: %w", err)
	}
	o.sweep = min(o.sweep, o.train)
	return o, nil
}

func numbers[T any](list string, parse func(string) (T, error)) (out []T, err error) {
	for _, s := range strings.Split(list, ",") {
		n, err := parse(s)
		if err != nil {
			return nil, err
		}
		out = append(out, n)
	}
	return out, nil
}

func (o options) has(part string) bool { return strings.Contains(","+o.only+",", ","+part+",") }

// open is the device, and how it keeps the base.
func (o options) open() (kernels.Backend, kernels.Format, error) {
	working, format := kernels.BF16, kernels.FormatBF16
	if o.precision == "float32" {
		working, format = kernels.F32, kernels.FormatF32
	}
	if o.device == "cuda" {
		be, err := cuda.Open(cuda.Config{Working: working})
		return be, format, err
	}
	be, err := cpu.Open(cpu.Config{Threads: 2, Working: working})
	return be, format, err
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	o, err := parse()
	if err == nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, o.limit)
		defer cancel()
		err = run(ctx, o)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		fmt.Fprintln(os.Stderr, "quality: out of time; the lines written so far are whole")
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "quality:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	b, err := openBase(o)
	if err != nil {
		return err
	}
	defer b.close()
	t, err := readTask(b.encoder, o)
	if err != nil {
		return err
	}
	fmt.Printf("# %d training examples of %d tokens, %d held-out of %d\n", len(t.train), tokensOf(t.train), len(t.test), tokensOf(t.test))
	if o.has("export") {
		if err := export(b, t, o); err != nil {
			return err
		}
	}
	s, err := openStudy(b, t, o)
	if err != nil {
		return err
	}
	defer s.close()
	if o.has("base") {
		if err := s.base(ctx); err != nil {
			return err
		}
	}
	if o.has("sweep") {
		if err := s.sweep(ctx); err != nil {
			return err
		}
	}
	if o.has("table") {
		return s.table(ctx)
	}
	return nil
}
