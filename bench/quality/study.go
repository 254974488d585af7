package main

import (
	"context"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"time"

	"bhive/adapters"
	"bhive/finetune"
	"bhive/infer"
	"bhive/kernels"
)

var (
	methods = []adapters.Method{adapters.Orthonormal, adapters.Kaiming, adapters.Activations}
	factors = []float64{0.25, 0.5, 1, 2, 4} // of the rate auto
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
	swept  map[spot]map[float64]float64 // loss by factor
}

// spot is what the best factor is looked up by.
type spot struct {
	method adapters.Method
	rank   int
}

// trial is one training.
type trial struct {
	kind       string // base, sweep, auto or best
	rank       int
	factor     float64
	correction bool
	train      int // examples, one epoch
}

func openStudy(b *base, t task, o options) (*study, error) {
	s := &study{b: b, t: t, o: o, hash: infer.BaseHash(b.cp), swept: map[spot]map[float64]float64{}}
	var err error
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

func (s *study) close() {
	s.be.Close()
	s.file.Close()
}

// corrects is what a job does of itself: rows that are neither orthonormal nor whitened get the correction.
func corrects(m adapters.Method) bool { return m == adapters.Kaiming }

// sweep tries factors of the rate auto, with one seed and fewer examples.
func (s *study) sweep(ctx context.Context) error {
	for i, method := range methods {
		var trials []trial
		if i == 0 {
			trials = append(trials, trial{kind: "base", rank: s.o.sweepRanks[0]})
		}
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

// table trains each basis, rank and seed with and without the correction, at the rate auto and, where the sweep found a better one, there. The first seed comes
// first, so that a run that is cut has it whole.
func (s *study) table(ctx context.Context) error {
	for _, kind := range []string{"auto", "best"} {
		for seed := 1; seed <= s.o.seeds; seed++ {
			for _, method := range methods {
				var trials []trial
				for _, rank := range s.o.ranks {
					f := 1.0
					if kind == "best" {
						if f = s.best(method, rank); f == 1 {
							continue // as auto
						}
					}
					for _, correction := range []bool{true, false} {
						trials = append(trials, trial{kind, rank, f, correction, s.o.train})
					}
				}
				if err := s.group(ctx, method, int64(seed), trials); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// best is the factor with the least loss in the sweep, at the swept rank that is nearest or, between two, at both.
func (s *study) best(method adapters.Method, rank int) float64 {
	near := math.Inf(1)
	for _, r := range s.o.sweepRanks {
		near = min(near, math.Abs(math.Log2(float64(r)/float64(rank))))
	}
	best, least := 1.0, math.Inf(1)
	for _, f := range factors {
		sum, n := 0.0, 0
		for _, r := range s.o.sweepRanks {
			if d := math.Abs(math.Log2(float64(r) / float64(rank))); d > near+1e-9 {
				continue
			}
			loss, ok := s.swept[spot{method, r}][f]
			if !ok || math.IsNaN(loss) {
				n = 0
				break
			}
			sum, n = sum+loss, n+1
		}
		if n > 0 && sum/float64(n) < least {
			best, least = f, sum/float64(n)
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
	if len(trials) == 0 {
		return nil
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
				if k.kind == "sweep" {
					at := spot{method, k.rank}
					if s.swept[at] == nil {
						s.swept[at] = map[float64]float64{}
					}
					s.swept[at][k.factor] = loss
				}
				fmt.Fprintf(s.lines, "%s,%s,%d,%t,%d,%g,%.4g,%.4f,%d,%.1f\n", k.kind, method, k.rank, k.correction, seed, k.factor, rate, loss, r.Step, time.Since(begin).Seconds())
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
