package main

import (
	"context"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"bhive/adapters"
	"bhive/finetune"
	"bhive/infer"
	"bhive/kernels"
)

var (
	methods = []adapters.Method{adapters.Orthonormal, adapters.Kaiming, adapters.Activations}
	factors = []float64{0.25, 0.5, 1, 2, 4} // of the rate auto, in the sweep
)

// study trains on one device; the runs that share a basis are lanes of one trainer.
type study struct {
	b      *base
	t      task
	o      options
	be     kernels.Backend
	format kernels.Format
	hash   string
	cov    func(layer int, site adapters.Site) []float64
	file   *os.File
	lines  io.Writer
	losses map[spot]map[float64]float64 // of the table's first seed, by factor
	done   map[string]string            // lines of an earlier run, by their first six columns
}

// spot is what the best factor is looked up by.
type spot struct {
	method     adapters.Method
	rank       int
	correction bool
}

// trial is one training.
type trial struct {
	kind       string // base, sweep, auto or factor
	rank       int
	factor     float64
	correction bool
	train      int // examples, one epoch
}

func openStudy(b *base, t task, o options) (*study, error) {
	s := &study{b: b, t: t, o: o, hash: infer.BaseHash(b.cp), losses: map[spot]map[float64]float64{}, done: map[string]string{}}
	var err error
	if o.earlier != "" {
		if err = s.readEarlier(o.earlier); err != nil {
			return nil, err
		}
	}
	if s.file, err = os.Create(filepath.Join(o.out, "quality.csv")); err != nil {
		return nil, err
	}
	s.lines = io.MultiWriter(os.Stdout, s.file)
	fmt.Fprintln(s.lines, "kind,basis,rank,correction,seed,factor,rate,loss,steps,seconds")
	if s.be, s.format, err = o.open(); err != nil {
		s.file.Close()
		return nil, err
	}
	return s, nil
}

// readEarlier reads the lines of a run that was cut.
func (s *study) readEarlier(path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSpace(line)
		if v := strings.Split(line, ","); len(v) == 10 && v[0] != "kind" {
			s.done[strings.Join(v[:6], ",")] = line
		}
	}
	return nil
}

// left are the trials that no earlier run has done; the others' lines are written as they are.
func (s *study) left(method adapters.Method, seed int64, trials []trial) (left []trial, err error) {
	for _, k := range trials {
		line, ok := s.done[k.columns(method, seed)]
		if !ok {
			left = append(left, k)
			continue
		}
		loss, err := strconv.ParseFloat(strings.Split(line, ",")[7], 64)
		if err != nil {
			return nil, fmt.Errorf("%s: %q: %w", s.o.earlier, line, err)
		}
		s.note(k, method, seed, loss)
		fmt.Fprintln(s.lines, line)
	}
	return left, nil
}

// columns are what a trial's line begins with.
func (k trial) columns(method adapters.Method, seed int64) string {
	return fmt.Sprintf("%s,%s,%d,%t,%d,%g", k.kind, method, k.rank, k.correction, seed, k.factor)
}

// note keeps a loss for the choice of the best factor.
func (s *study) note(k trial, method adapters.Method, seed int64, loss float64) {
	if seed != 1 || k.kind != "auto" && k.kind != "factor" {
		return
	}
	at := spot{method, k.rank, k.correction}
	if s.losses[at] == nil {
		s.losses[at] = map[float64]float64{}
	}
	s.losses[at][k.factor] = loss
}

func (s *study) close() {
	s.be.Close()
	s.file.Close()
}

// corrects is what a job does of itself: rows that are neither orthonormal nor whitened get the correction.
func corrects(m adapters.Method) bool { return m == adapters.Kaiming }

// base is the loss without an adapter.
func (s *study) base(ctx context.Context) error {
	return s.group(ctx, methods[0], 1, []trial{{kind: "base", rank: s.o.ranks[0]}})
}

// sweep tries factors of the rate auto, with one seed and fewer examples.
func (s *study) sweep(ctx context.Context) error {
	for _, method := range methods {
		var trials []trial
		for _, rank := range s.o.sweepRanks {
			for _, f := range factors {
				trials = append(trials, trial{"sweep", rank, f, corrects(method), s.o.sweep})
			}
		}
		if err := s.group(ctx, method, 1, trials); err != nil {
			return err
		}
	}
	return nil
}

// table trains each basis, rank and seed with and without the correction at the rate auto; then the first seed at other factors of it; then the other seeds where a factor was
// better. What is last is what a run that is cut can best do without.
func (s *study) table(ctx context.Context) error {
	for seed := 1; seed <= s.o.seeds; seed++ {
		for _, method := range methods {
			if err := s.group(ctx, method, int64(seed), s.trials("auto", func(int, bool) float64 { return 1 })); err != nil {
				return err
			}
		}
	}
	for _, method := range methods {
		for _, f := range s.o.factors {
			if err := s.group(ctx, method, 1, s.trials("factor", func(int, bool) float64 { return f })); err != nil {
				return err
			}
		}
	}
	for seed := 2; seed <= s.o.seeds; seed++ {
		for _, method := range methods {
			better := func(rank int, correction bool) float64 {
				if f := s.best(spot{method, rank, correction}); f != 1 {
					return f
				}
				return 0
			}
			if err := s.group(ctx, method, int64(seed), s.trials("factor", better)); err != nil {
				return err
			}
		}
	}
	return nil
}

// trials are one of each rank of the table, with and without the correction, at a factor; where that is 0 there is none.
func (s *study) trials(kind string, factor func(rank int, correction bool) float64) (out []trial) {
	for _, rank := range s.o.ranks {
		for _, correction := range []bool{true, false} {
			if f := factor(rank, correction); f != 0 {
				out = append(out, trial{kind, rank, f, correction, s.o.train})
			}
		}
	}
	return out
}

// best is the factor of the least loss.
func (s *study) best(at spot) float64 {
	best, least := 1.0, math.Inf(1)
	for f, loss := range s.losses[at] {
		if loss < least || loss == least && f < best {
			best, least = f, loss
		}
	}
	return best
}

// model loads the base with a basis of a method and seed.
func (s *study) model(ctx context.Context, method adapters.Method, seed int64) (*infer.Model, error) {
	cc := s.b.cp.Config()
	load := func(basis *adapters.Basis) (*infer.Model, error) {
		return infer.Load(ctx, s.be, s.b.cp, basis, infer.LoadConfig{Format: s.format, BaseHash: s.hash})
	}
	g := adapters.Geometry{Layers: cc.Layers, Hidden: cc.Hidden, QDim: cc.Heads * cc.HeadDim, KVDim: cc.KVHeads * cc.HeadDim, FeedForward: cc.FeedForward}
	c := adapters.BasisConfig{Method: method, Seed: uint64(seed), R: s.o.rows, Geometry: g, BaseHash: s.hash}
	if method == adapters.Activations {
		if s.cov == nil {
			plain, err := load(nil)
			if err != nil {
				return nil, err
			}
			defer plain.Close()
			if s.cov, err = s.calibrate(ctx, plain); err != nil {
				return nil, err
			}
		}
		c.Cov = s.cov
	}
	basis, err := adapters.NewBasis(ctx, c)
	if err != nil {
		return nil, err
	}
	return load(basis)
}

// calibrate measures the built-in text, as a server does.
func (s *study) calibrate(ctx context.Context, plain *infer.Model) (func(int, adapters.Site) []float64, error) {
	var texts [][]int32
	for _, text := range infer.CalibrationTexts() {
		var ids []int32
		for _, id := range s.b.encoder.Text(text) {
			ids = append(ids, int32(id))
		}
		texts = append(texts, ids[:min(len(ids), 512, plain.Config.MaxPositions)])
	}
	return infer.Calibrate(ctx, plain, texts, infer.CalibrateConfig{})
}

// group runs trials on one basis, all in one batch.
func (s *study) group(ctx context.Context, method adapters.Method, seed int64, trials []trial) error {
	trials, err := s.left(method, seed, trials)
	if err != nil || len(trials) == 0 {
		return err
	}
	m, err := s.model(ctx, method, seed)
	if err != nil {
		return fmt.Errorf("basis %s, seed %d: %w", method, seed, err)
	}
	defer m.Close()
	tr, err := finetune.NewTrainer(m, finetune.TrainerConfig{Lanes: len(trials), BatchTokens: s.o.tokens, Seqs: max(64, s.o.tokens/64)})
	if err != nil {
		return err
	}
	defer tr.Close()
	begin := time.Now()
	tokens := int64(0)
	for _, k := range trials {
		steps := k.train / s.o.batch
		rate := k.factor * finetune.AutoRate(m.Basis, k.rank, 2*float64(k.rank))
		set := s.t.train[:min(k.train, len(s.t.train))]
		if k.kind == "base" { // a step of rate 0
			set, steps = s.t.train[:s.o.batch], 1
		}
		steps = max(steps, 1)
		_, err := tr.Add(finetune.LaneOptions{Rank: k.rank, Alpha: 2 * float64(k.rank), Train: set, Held: s.t.test, Seed: seed,
			Batching: finetune.Batching{Examples: min(s.o.batch, len(set)), Batches: 1}, Schedule: finetune.Schedule{Kind: finetune.ScheduleCosine, Rate: rate, Steps: steps},
			Beta1: 0.9, Beta2: 0.999, Epsilon: 1e-6, Clip: 1, Correction: k.correction, Report: func(r finetune.Report) {
				tokens += r.Tokens
				loss := math.NaN()
				switch {
				case r.Eval:
					loss = r.Loss
				case r.Err == nil:
					return
				}
				s.note(k, method, seed, loss)
				fmt.Fprintf(s.lines, "%s,%.4g,%.4f,%d,%.1f\n", k.columns(method, seed), rate, loss, r.Step, time.Since(begin).Seconds())
			}})
		if err != nil {
			return fmt.Errorf("rank %d: %w", k.rank, err)
		}
	}
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		more, err := tr.Unit()
		if err != nil {
			return err
		}
		if !more {
			took := time.Since(begin)
			fmt.Printf("# %s, seed %d: %d runs, %d tokens in %.1f s, %.0f tokens a second, plan %s\n", method, seed, len(trials), tokens, took.Seconds(), float64(tokens)/took.Seconds(), tr.MemoryPlan())
			return nil
		}
	}
}
