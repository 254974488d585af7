package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
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
	dir, store, remove, err := benchStore()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, remove()) }()
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
	timed := &timedStore{Store: store}
	registry := adapters.NewRegistry(timed, nil)
	registry.StageIn(pool)
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
	p := publishing{c: c, engine: engine, jobs: jobs, registry: registry, store: timed}
	var times []published
	for range c.sizes.versions + 1 { // the first warms up
		var t published
		if t, err = p.version(ctx); err != nil {
			break
		}
		times = append(times, t)
	}
	stop()
	if e := parts.Wait(); e != nil && !errors.Is(e, context.Canceled) {
		err = errors.Join(err, e)
	}
	if err = errors.Join(err, jobs.Close()); err != nil {
		return err
	}
	floor, err := publishFloors(dir, l.model.Geometry, c.Rank)
	if err != nil {
		return err
	}
	var begun, stored, known, first, all []time.Duration
	for _, t := range times[1:] {
		begun, stored, known = append(begun, t.begun.Sub(t.stepped)), append(stored, t.stored.Sub(t.begun)), append(known, t.known.Sub(t.stored))
		first, all = append(first, t.answered.Sub(t.known)), append(all, t.answered.Sub(t.stepped))
	}
	worst, part := slices.Max(all), func(d []time.Duration) float64 { return ms(median(d)) }
	c.add(benchRow{Name: fmt.Sprintf("last optimizer step to first token with the new B, rank %d (p50)", c.Rank), Kind: rowPublish, Rank: c.Rank, R: l.model.R(), Milliseconds: part(all),
		FloorMS: ms(max(floor.hash, floor.disk)), More: map[string]float64{"worst_ms": ms(worst), "begun_ms": part(begun), "stored_ms": part(stored), "known_ms": part(known), "answered_ms": part(first),
			"versions": float64(len(all)), "adapter_bytes": float64(each), "from_memory": float64(pool.Stats().HostHits), "from_store": float64(pool.Stats().Misses),
			"encode_alone_ms": ms(floor.encode), "hash_alone_ms": ms(floor.hash), "disk_alone_ms": ms(floor.disk), "sync_alone_ms": ms(floor.sync)},
		Note: fmt.Sprintf("%.1f ms until the store has the first of it, %.1f until all of it is copied, encoded, hashed, durable and live (encoding alone %.1f, hashing alone %.1f, writing and syncing alone %.1f, "+
			"a small sync %.2f), %.1f until the job says so, %.1f until the first token; worst %.1f of %d; %.1f MiB; %d of %d first requests found it in host memory", part(begun), part(stored),
			ms(floor.encode), ms(floor.hash), ms(floor.disk), ms(floor.sync), part(known), part(first), ms(worst), len(all), float64(each)/(1<<20), pool.Stats().HostHits, len(times))})
	return nil
}

// floors are what parts of a publication take at the least, alone, at the same place.
type floors struct{ encode, hash, disk, sync time.Duration }

// publishFloors measures them: encoding and hashing a B of random numbers, writing its blob to a new file and syncing that, and syncing a page.
func publishFloors(dir string, g adapters.Geometry, rank int) (floors, error) {
	w := adapters.NewWeights(g, rank, float64(2*rank))
	r := rand.New(rand.NewPCG(1, 9))
	for i := range w.Data {
		w.Data[i] = r.Float32() - 0.5
	}
	var blob bytes.Buffer
	if err := adapters.EncodeBlob(&blob, w, "", ""); err != nil {
		return floors{}, err
	}
	write := func(b []byte) error {
		f, err := os.Create(filepath.Join(dir, "floor"))
		if err != nil {
			return err
		}
		_, err = f.Write(b)
		return errors.Join(err, f.Sync(), f.Close())
	}
	var out floors
	for _, m := range []struct {
		to *time.Duration
		f  func() error
	}{
		{&out.encode, func() error { return adapters.EncodeBlob(io.Discard, w, "", "") }},
		{&out.hash, func() error { sha256.Sum256(blob.Bytes()); return nil }},
		{&out.disk, func() error { return write(blob.Bytes()) }},
		{&out.sync, func() error { return write(make([]byte, 4096)) }},
	} {
		var took []time.Duration
		for range 5 {
			start := time.Now()
			if err := m.f(); err != nil {
				return floors{}, fmt.Errorf("measuring the floor of a publication: %w", err)
			}
			took = append(took, time.Since(start))
		}
		*m.to = median(took)
	}
	return out, nil
}

// timedStore remembers when it had read the first of the last version's values, and when that was durable and live.
type timedStore struct {
	*local.Store
	mu           sync.Mutex
	begun, ended time.Time
}

func (s *timedStore) PublishBlob(ctx context.Context, tenant string, r io.Reader, v adapters.Version, o adapters.PublishOptions) (adapters.Version, error) {
	timed := &timedReader{Reader: r}
	v, err := s.Store.PublishBlob(ctx, tenant, timed, v, o)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.begun, s.ended = timed.begun, time.Now()
	return v, err
}

// timedReader remembers when something came after the list of tensors.
type timedReader struct {
	io.Reader
	reads int
	begun time.Time
}

func (r *timedReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if r.reads++; r.reads == 2 {
		r.begun = time.Now()
	}
	return n, err
}

// published is when a version's last step had ended, the store had the first of it, it was durable and live, the job said so, and the first token came.
type published struct{ stepped, begun, stored, known, answered time.Time }

// publishing trains one version after the other of an adapter.
type publishing struct {
	c        *benchGPUCmd
	engine   *infer.Engine
	jobs     *finetune.Manager
	registry *adapters.Registry
	store    *timedStore
	parent   string
}

// version trains one and asks it.
func (p *publishing) version(ctx context.Context) (t published, err error) {
	examples := strings.Repeat(`{"text": "`+strings.Repeat("The hive is full of bees. ", 6)+`"}`+"\n", 4)
	job, err := p.jobs.Submit(ctx, finetune.JobSpec{Name: publishName, Parent: p.parent, Training: strings.NewReader(examples), Rank: p.c.Rank, MaxSteps: publishSteps, BatchSize: 4, Raw: true,
		LearningRate: finetune.LearningRate{Value: 1e-4}})
	if err != nil {
		return t, err
	}
	p.parent = publishName
	for e, err := range p.jobs.Events(ctx, "", job.ID, 0) {
		if err != nil {
			return t, err
		}
		switch {
		case e.Error != nil:
			return t, fmt.Errorf("benchmark: the job failed: %s", e.Error.Message)
		case e.Type == finetune.EventProgress:
			t.stepped = e.Time
		}
		if e.Type == finetune.EventPublished {
			break
		}
	}
	if t.stepped.IsZero() {
		return t, errors.New("benchmark: a job that tells of no step")
	}
	t.known = time.Now()
	p.store.mu.Lock()
	t.begun, t.stored = p.store.begun, p.store.ended
	p.store.mu.Unlock()
	ref, err := adapters.ParseRef(publishName)
	if err != nil {
		return t, err
	}
	target, err := p.registry.Resolve(ctx, "", ref, false)
	if err != nil {
		return t, err
	}
	q := infer.Request{Prompt: []int{1, 2, 3, 4, 5, 6, 7, 8}, Adapter: target, Params: infer.DefaultParams()}
	q.Params.Temperature, q.Params.MaxTokens, q.Params.IgnoreEOS = 0, 1, true
	g, err := p.engine.Submit(ctx, q)
	if err != nil {
		return t, err
	}
	defer g.Close()
	for {
		d, err := g.Next(ctx)
		if len(d.Tokens) > 0 && t.answered.IsZero() {
			t.answered = time.Now()
		}
		if errors.Is(err, io.EOF) {
			return t, nil
		}
		if err != nil {
			return t, err
		}
	}
}
