package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"time"

	"bhive/adapters"
	"bhive/adapters/local"
	"bhive/finetune"
	"bhive/infer"
	"bhive/server"

	"golang.org/x/sync/errgroup"
)

// httpResult compares a step of a server with streaming clients and the bare step of the same batch. Times are medians of all rounds.
type httpResult struct {
	Clients  int           `json:"clients"`
	Step     time.Duration `json:"step_ns"` // of the engine while all clients stream, from its end to the end of the next
	Bare     time.Duration `json:"bare_ns"`
	Overhead float64       `json:"overhead"` // median of the rounds' Step/Bare − 1
}

// benchHTTP runs a whole server on loopback in turns with the bare model's steps.
type benchHTTP struct {
	l       *loaded
	clients int
	prompt  int // tokens
	tokens  int // to generate
	rounds  int
	budget  int // tokens of a step; 0: the engine's default

	engine *infer.Engine
	url    string
	client *http.Client
	steps  stepTimes
}

// stepTimes notes when full decode steps end. It is the engine's observer.
type stepTimes struct {
	*server.Metrics
	batch int
	last  time.Time // end of the step before, where that was full too
	took  []time.Duration
}

func (s *stepTimes) ObserveStep(i infer.StepInfo) {
	s.Metrics.ObserveStep(i)
	now := time.Now()
	if i.DecodeSeqs != s.batch || i.PrefillTokens > 0 {
		s.last = time.Time{}
		return
	}
	if !s.last.IsZero() {
		s.took = append(s.took, now.Sub(s.last))
	}
	s.last = now
}

func (b *benchHTTP) run(ctx context.Context) (r httpResult, err error) {
	err = b.serve(ctx, func(ctx context.Context) error {
		r, err = b.compare(ctx)
		return err
	})
	return r, err
}

// benchStore opens a registry in a new directory; remove closes it and takes the directory away.
func benchStore() (dir string, store *local.Store, remove func() error, err error) {
	if dir, err = os.MkdirTemp("", "bhive-bench-"); err != nil {
		return "", nil, nil, fmt.Errorf("benchmark: %w", err)
	}
	if store, err = local.Open(dir, local.Options{}); err != nil {
		return "", nil, nil, errors.Join(err, os.RemoveAll(dir))
	}
	return dir, store, func() error { return errors.Join(store.Close(), os.RemoveAll(dir)) }, nil
}

// serve runs the server while f measures.
func (b *benchHTTP) serve(ctx context.Context, f func(context.Context) error) (err error) {
	_, store, remove, err := benchStore()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, remove()) }()

	b.client = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: b.clients}}
	b.steps = stepTimes{Metrics: server.NewMetrics(), batch: b.clients}
	longest, apart := b.prompt+b.tokens+1, !b.l.backend.Info().CopyInPlace
	if b.engine, err = infer.New(infer.Config{MaxSeqs: b.clients, MaxTokens: b.budget, MaxContext: longest, NoPrefixCache: true, Observer: &b.steps,
		KVBlocks: b.clients * (longest/16 + 1), BlockTokens: 16, Graphs: apart, Overlap: apart}, b.l.model, nil, nil, b.l.tokenizer); err != nil {
		return err
	}
	if err := b.engine.Open(); err != nil {
		return err
	}
	defer b.engine.Close()
	quiet := slog.New(slog.DiscardHandler)
	registry := adapters.NewRegistry(store, nil)
	jobs, err := finetune.New(finetune.Config{}, finetune.Deps{Model: b.l.model, Registry: registry, Log: quiet})
	if err != nil {
		return err
	}
	s, err := server.New(server.Config{Addr: "127.0.0.1:0"}, server.Deps{Engine: b.engine, Jobs: jobs, Registry: registry, Store: store,
		Basis: b.l.model.Basis, Tokenizer: b.l.tokenizer, Template: b.l.template, Metrics: b.steps.Metrics, Log: quiet,
		Model: server.ModelInfo{Name: b.l.name, Defaults: infer.DefaultParams()}})
	if err != nil {
		return err
	}
	listener, err := s.Listen(ctx)
	if err != nil {
		return err
	}
	b.url = "http://" + listener.Addr().String() + "/v1/completions"
	run, stop := context.WithCancel(ctx)
	var parts errgroup.Group
	parts.Go(func() error { return b.engine.Run(run) })
	parts.Go(func() error { return s.Run(run, listener) })
	err = f(ctx)
	b.client.CloseIdleConnections()
	stop()
	return errors.Join(err, parts.Wait())
}

// compare alternates rounds of streams and of bare steps over the same contexts: each round of streams stands between two of the others.
func (b *benchHTTP) compare(ctx context.Context) (httpResult, error) {
	var over []float64
	var steps, bare []time.Duration
	before, err := b.alone(ctx)
	if err != nil {
		return httpResult{}, err
	}
	for round := -1; round < b.rounds; round++ { // the first one warms up
		b.steps.took = b.steps.took[:0] // the engine is idle
		if err := b.stream(ctx); err != nil {
			return httpResult{}, err
		}
		after, err := b.alone(ctx)
		if err != nil {
			return httpResult{}, err
		}
		if len(b.steps.took) == 0 {
			return httpResult{}, fmt.Errorf("benchmark: the %d streams never ran in one step", b.clients)
		}
		if round >= 0 {
			step, between := median(b.steps.took), (before+after)/2
			steps, bare = append(steps, step), append(bare, between)
			over = append(over, float64(step)/float64(between)-1)
		}
		before = after
	}
	return httpResult{Clients: b.clients, Step: median(steps), Bare: median(bare), Overhead: median(over)}, nil
}

// within runs what the clients ask for on the engine without HTTP.
func (b *benchHTTP) within(ctx context.Context) error {
	var all errgroup.Group
	random := rand.New(rand.NewPCG(1, 6))
	for range b.clients {
		r := infer.Request{Prompt: make([]int, b.prompt), Params: infer.DefaultParams()}
		for i := range r.Prompt {
			r.Prompt[i] = random.IntN(b.l.model.Config.Vocab)
		}
		r.Params.Temperature, r.Params.MaxTokens, r.Params.IgnoreEOS = 0, b.tokens, true
		all.Go(func() error {
			g, err := b.engine.Submit(ctx, r)
			if err != nil {
				return err
			}
			defer g.Close()
			for {
				if _, err := g.Next(ctx); errors.Is(err, io.EOF) {
					return nil
				} else if err != nil {
					return err
				}
			}
		})
	}
	return all.Wait()
}

// turns lets the engine alone and the clients take turns, each round of clients between two of the engine, and gives the median times of all
// requests together, and of a round's ratio engine/clients.
func (b *benchHTTP) turns(ctx context.Context) (bare, over time.Duration, ratio float64, err error) {
	timed := func(f func(context.Context) error) (time.Duration, error) {
		begin := time.Now()
		err := f(ctx)
		return time.Since(begin), err
	}
	err = b.serve(ctx, func(context.Context) error {
		var bares, overs []time.Duration
		var ratios []float64
		before, err := timed(b.within)
		if err != nil {
			return err
		}
		for round := -1; round < b.rounds; round++ { // the first one warms up
			through, err := timed(b.stream)
			if err != nil {
				return err
			}
			after, err := timed(b.within)
			if err != nil {
				return err
			}
			if between := (before + after) / 2; round >= 0 {
				bares, overs, ratios = append(bares, between), append(overs, through), append(ratios, between.Seconds()/through.Seconds())
			}
			before = after
		}
		bare, over, ratio = median(bares), median(overs), median(ratios)
		return nil
	})
	return bare, over, ratio, err
}

// alone is the median time of bare steps, run where nothing else is on the device.
func (b *benchHTTP) alone(ctx context.Context) (step time.Duration, err error) {
	err = b.engine.Do(ctx, func() error {
		r, err := infer.Bench(ctx, b.l.model, infer.BenchConfig{Batches: []int{b.clients}, BaseOnly: true, Prefills: -1,
			Context: b.prompt + b.tokens/2, Steps: b.tokens})
		if err == nil {
			step = r.Decode[0].Step
		}
		return err
	})
	return step, err
}

// stream runs all clients to their ends.
func (b *benchHTTP) stream(ctx context.Context) error {
	var all errgroup.Group
	random := rand.New(rand.NewPCG(1, 6))
	for range b.clients {
		prompt := make([]int, b.prompt)
		for i := range prompt {
			prompt[i] = random.IntN(b.l.model.Config.Vocab)
		}
		body, err := json.Marshal(map[string]any{"model": b.l.name, "prompt": prompt, "max_tokens": b.tokens, "temperature": 0, "ignore_eos": true, "stream": true})
		if err != nil {
			return fmt.Errorf("benchmark: %w", err)
		}
		all.Go(func() error {
			q, err := http.NewRequestWithContext(ctx, http.MethodPost, b.url, bytes.NewReader(body))
			if err != nil {
				return fmt.Errorf("benchmark: %w", err)
			}
			q.Header.Set("Content-Type", "application/json")
			a, err := b.client.Do(q)
			if err != nil {
				return fmt.Errorf("benchmark: %w", err)
			}
			defer a.Body.Close()
			if a.StatusCode != http.StatusOK {
				text, _ := io.ReadAll(io.LimitReader(a.Body, 1<<10))
				return fmt.Errorf("benchmark: %s: %s", a.Status, text)
			}
			done := false
			err = events(a.Body, func(data []byte) error {
				done = done || string(data) == "[DONE]"
				return nil
			})
			if err == nil && !done {
				err = errors.New("benchmark: a stream broke off")
			}
			return err
		})
	}
	return all.Wait()
}

func median[T int | int64 | float64 | time.Duration](v []T) T {
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}
