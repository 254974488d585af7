package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"bhive/adapters"
	"bhive/adapters/local"
	"bhive/finetune"
	"bhive/infer"

	"golang.org/x/sync/errgroup"
)

const (
	publishName  = "published"
	publishSteps = 3 // of a version
)

// publishRows measures how soon a trained version answers: from the end of its last optimizer step, as the job's own progress tells, to the first
// token of a request that asks for the adapter as soon as the job says that it is published. The registry is a directory, and everything durable.
func (c *benchGPUCmd) publishRows(ctx context.Context, l *loaded) (err error) {
	dir, err := os.MkdirTemp("", "bhive-bench-")
	if err != nil {
		return fmt.Errorf("benchmark: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	store, err := local.Open(dir, local.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	stream := l.backend.NewStream()
	defer l.backend.FreeStream(stream)
	device, err := infer.NewDevice(l.backend, stream, 16)
	if err != nil {
		return err
	}
	defer device.Close()
	each := c.footprint(l).AdapterBytes(c.Rank) + 1<<10
	if err := device.Reserve(8*each, 8*each); err != nil {
		return err
	}
	var engine *infer.Engine
	pool, err := adapters.NewPool(adapters.PoolConfig{Geometry: l.model.Geometry, DType: device.DType(), Slots: 16, DeviceBytes: 7 * each, HostBytes: 8 * each,
		Wake: func() { engine.Wake() }, Check: adapters.CheckVersion(l.model.Basis)}, store, device)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, pool.Close()) }()
	apart := !l.backend.Info().CopyInPlace
	if engine, err = infer.New(infer.Config{MaxSeqs: 8, MaxContext: 512, KVBlocks: 8 * 32, Graphs: apart, Overlap: apart}, l.model, pool, device, l.tokenizer); err != nil {
		return err
	}
	if err := engine.Open(); err != nil {
		return err
	}
	defer engine.Close()
	registry := adapters.NewRegistry(store, nil)
	jobs, err := finetune.New(finetune.Config{}, finetune.Deps{Model: l.model, Registry: registry, Encoder: finetune.NewEncoder(l.tokenizer, l.template, engine.Config().EOS),
		Wake: engine.Wake, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	engine.SetBackground(jobs)
	engineContext, stopEngine := context.WithCancel(context.WithoutCancel(ctx))
	defer stopEngine()
	run, stop := context.WithCancel(ctx)
	var parts errgroup.Group
	parts.Go(func() error { return engine.Run(engineContext) })
	parts.Go(func() error { return registry.Run(run) })
	parts.Go(func() error {
		defer stopEngine()
		return jobs.Run(run)
	})
	p := publishing{c: c, engine: engine, jobs: jobs, registry: registry}
	var took, durable []time.Duration
	for range c.sizes.versions + 1 { // the first warms up
		var all, until time.Duration
		if all, until, err = p.version(ctx); err != nil {
			break
		}
		took, durable = append(took, all), append(durable, until)
	}
	stop()
	if e := parts.Wait(); e != nil && !errors.Is(e, context.Canceled) {
		err = errors.Join(err, e)
	}
	if err = errors.Join(err, jobs.Close()); err != nil {
		return err
	}
	took, durable = took[1:], durable[1:]
	worst := slices.Max(took)
	c.add(benchRow{Name: fmt.Sprintf("last optimizer step to first token with the new B, rank %d (p50)", c.Rank), Kind: rowPublish, Rank: c.Rank, R: l.model.R(), Milliseconds: ms(median(took)),
		More: map[string]float64{"worst_ms": ms(worst), "published_ms": ms(median(durable)), "versions": float64(len(took)), "adapter_bytes": float64(each)},
		Note: fmt.Sprintf("%.1f ms until it is durable and live; worst %.1f ms of %d; %.1f MiB", ms(median(durable)), ms(worst), len(took), float64(each)/(1<<20))})
	return nil
}

// publishing trains one version after the other of an adapter.
type publishing struct {
	c        *benchGPUCmd
	engine   *infer.Engine
	jobs     *finetune.Manager
	registry *adapters.Registry
	parent   string
}

// version trains one and asks it: the time from the last step to its first token, and of that until it was known as published.
func (p *publishing) version(ctx context.Context) (all, durable time.Duration, err error) {
	examples := strings.Repeat(`{"text": "`+strings.Repeat("The hive is full of bees. ", 6)+`"}`+"\n", 4)
	job, err := p.jobs.Submit(ctx, finetune.JobSpec{Name: publishName, Parent: p.parent, Training: strings.NewReader(examples), Rank: p.c.Rank, MaxSteps: publishSteps, BatchSize: 4, Raw: true,
		LearningRate: finetune.LearningRate{Value: 1e-4}})
	if err != nil {
		return 0, 0, err
	}
	p.parent = publishName
	var last time.Time
	for e, err := range p.jobs.Events(ctx, "", job.ID, 0) {
		if err != nil {
			return 0, 0, err
		}
		switch {
		case e.Error != nil:
			return 0, 0, fmt.Errorf("benchmark: the job failed: %s", e.Error.Message)
		case e.Type == finetune.EventProgress:
			last = e.Time
		}
		if e.Type == finetune.EventPublished {
			break
		}
	}
	if last.IsZero() {
		return 0, 0, errors.New("benchmark: a job that tells of no step")
	}
	durable = time.Since(last)
	ref, err := adapters.ParseRef(publishName)
	if err != nil {
		return 0, 0, err
	}
	target, err := p.registry.Resolve(ctx, "", ref, false)
	if err != nil {
		return 0, 0, err
	}
	q := infer.Request{Prompt: []int{1, 2, 3, 4, 5, 6, 7, 8}, Adapter: target, Params: infer.DefaultParams()}
	q.Params.Temperature, q.Params.MaxTokens, q.Params.IgnoreEOS = 0, 1, true
	g, err := p.engine.Submit(ctx, q)
	if err != nil {
		return 0, 0, err
	}
	defer g.Close()
	for {
		d, err := g.Next(ctx)
		if len(d.Tokens) > 0 && all == 0 {
			all = time.Since(last)
		}
		if errors.Is(err, io.EOF) {
			return all, durable, nil
		}
		if err != nil {
			return 0, 0, err
		}
	}
}
