package infer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"

	"bhive/adapters"
	"bhive/infer/tokenizer"
	"bhive/kernels"

	"golang.org/x/sync/errgroup"
)

// EngineBenchConfig sizes an EngineBench. All fields are needed but those that say otherwise.
type EngineBenchConfig struct {
	Rank           int     // of the adapters
	Slots          int     // adapter slots
	DeviceBytes    int64   // for B's on the device
	HostBytes      int64   // for B's beside it
	StoreBandwidth float64 // bytes a second of the store that makes B's from a seed; 0: as fast as it can
	MaxTokens      int     // token budget of a step
	Utilization    float64 // Config.MemoryUtilization; 0: KV caches of 512 MiB
}

// EngineBench measures what only a whole engine shows, with a pool of adapters: swaps between steps, first tokens of adapters that are
// not on the device, and S-LoRA's workload. Its adapters are noise from a seed, made by a store of a stated bandwidth.
type EngineBench struct {
	m      *Model
	tok    *tokenizer.Tokenizer
	c      EngineBenchConfig
	stream kernels.Stream
	device *Device
	store  seedStore
}

// OpenEngineBench takes the memory for adapters. Close gives it back. The model has a basis.
func OpenEngineBench(m *Model, tok *tokenizer.Tokenizer, c EngineBenchConfig) (*EngineBench, error) {
	b := &EngineBench{m: m, tok: tok, c: c, stream: m.Backend.NewStream()}
	b.store.wide = m.Backend.Info().Working.Size() == 4
	var err error
	if b.device, err = NewDevice(m.Backend, b.stream, c.Slots); err == nil {
		err = b.device.Reserve(c.DeviceBytes, c.HostBytes)
	}
	if err != nil {
		b.Close()
		return nil, err
	}
	return b, nil
}

// Close frees what Open took.
func (b *EngineBench) Close() {
	if b.device != nil {
		b.device.Close()
	}
	b.m.Backend.FreeStream(b.stream)
}

// AdapterBytes is the size of a B.
func (b *EngineBench) AdapterBytes() int64 {
	return int64(b.c.Rank) * int64(b.m.Geometry.OutTotal()) * int64(b.device.DType().Size())
}

// benchEngine is an engine that runs.
type benchEngine struct {
	b     *EngineBench
	e     *Engine
	pool  *adapters.Pool
	clock stepClock
	stop  func() error
}

// start runs an engine whose pool keeps up to deviceBytes on the device.
func (b *EngineBench) start(c Config, deviceBytes int64) (*benchEngine, error) {
	apart := !b.m.Backend.Info().CopyInPlace
	if c.MaxTokens == 0 {
		c.MaxTokens = b.c.MaxTokens
	}
	c.MaxTokens = max(c.MaxTokens, c.MaxSeqs)
	c.Graphs, c.Overlap, c.NoPrefixCache, c.QueueLimit = apart, apart, true, 1<<20
	c.MemoryUtilization = b.c.Utilization
	r := &benchEngine{b: b}
	c.Observer = &r.clock
	var err error
	r.pool, err = adapters.NewPool(adapters.PoolConfig{Geometry: b.m.Geometry, DType: b.device.DType(), Slots: b.c.Slots, DeviceBytes: deviceBytes,
		HostBytes: b.c.HostBytes, Fetchers: 8, Wake: func() { r.e.Wake() }, Load: b.store.load}, nil, b.device)
	if err != nil {
		return nil, err
	}
	if r.e, err = New(c, b.m, r.pool, b.device, b.tok); err != nil {
		return nil, err
	}
	if err := r.e.Open(); err != nil {
		return nil, errors.Join(err, r.pool.Close())
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.e.Run(ctx) }()
	r.stop = func() error {
		cancel()
		err := <-ended
		r.e.Close()
		return errors.Join(err, r.pool.Close())
	}
	return r, nil
}

// timed is what one request took.
type timed struct {
	first, total time.Duration
	tokens       int
	shown        []time.Time // when tokens came
}

// perToken is the mean time of the tokens after the first.
func (t timed) perToken() time.Duration {
	if t.tokens < 2 {
		return 0
	}
	return (t.total - t.first) / time.Duration(t.tokens-1)
}

// ask runs a request of random tokens to its end.
func (r *benchEngine) ask(ctx context.Context, random *rand.Rand, a adapters.Target, prompt, tokens int) (timed, error) {
	begin := time.Now()
	g, err := r.submit(ctx, random, a, prompt, tokens)
	if err != nil {
		return timed{}, err
	}
	return drain(ctx, g, begin)
}

// submit begins a request of random tokens.
func (r *benchEngine) submit(ctx context.Context, random *rand.Rand, a adapters.Target, prompt, tokens int) (*Generation, error) {
	q := Request{Prompt: make([]int, prompt), Adapter: a, Params: DefaultParams()}
	for i := range q.Prompt {
		q.Prompt[i] = random.IntN(r.b.m.Config.Vocab)
	}
	q.Params.Temperature, q.Params.MaxTokens, q.Params.IgnoreEOS = 0, tokens, true
	return r.e.Submit(ctx, q)
}

// drain reads a generation to its end.
func drain(ctx context.Context, g *Generation, begin time.Time) (timed, error) {
	defer g.Close()
	var t timed
	for {
		d, err := g.Next(ctx)
		if errors.Is(err, io.EOF) {
			t.total = time.Since(begin)
			return t, nil
		}
		if err != nil {
			return t, err
		}
		if len(d.Tokens) > 0 {
			t.shown = append(t.shown, time.Now())
			if t.first == 0 {
				t.first = time.Since(begin)
			}
		}
		t.tokens += len(d.Tokens)
	}
}

// streams runs n requests at once to their ends. One goroutine submits them all, so that they begin together also on a busy machine.
func (r *benchEngine) streams(ctx context.Context, n, prompt, tokens int, target func(i int) adapters.Target) error {
	var all errgroup.Group
	for i := range n {
		begin := time.Now()
		g, err := r.submit(ctx, rand.New(rand.NewPCG(uint64(i), 8)), target(i), prompt, tokens)
		if err != nil {
			return errors.Join(err, all.Wait())
		}
		all.Go(func() error {
			_, err := drain(ctx, g, begin)
			return err
		})
	}
	return all.Wait()
}

// fullSteps repeats streams until done says so and half as many steps as a stream has were of the whole batch, and gives their times. A batch that
// never comes together ends it with an error.
func (r *benchEngine) fullSteps(ctx context.Context, batch, prompt, tokens int, target func(i int) adapters.Target, done func() bool) ([]time.Duration, error) {
	const rounds = 50
	r.clock.watch(batch)
	for round := 0; round == 0 || !done() || round < rounds && r.clock.noted() < max(tokens/2, fewestSteps); round++ {
		if err := r.streams(ctx, batch, prompt, tokens, target); err != nil {
			return nil, err
		}
	}
	return r.clock.steps()
}

// bring leases an adapter until it is on the device, and lets it go.
func (r *benchEngine) bring(ctx context.Context, t adapters.Target) error {
	l, err := r.pool.Acquire(t)
	if err != nil {
		return err
	}
	defer l.Release()
	select {
	case <-l.Ready():
		return l.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// bringAll brings adapters from, from+1, …, to−1, a few at once.
func (r *benchEngine) bringAll(ctx context.Context, from, to int) error {
	all, ctx := errgroup.WithContext(ctx)
	all.SetLimit(16)
	for i := from; i < to; i++ {
		all.Go(func() error { return r.bring(ctx, benchTarget(i, r.b.c.Rank)) })
	}
	return all.Wait()
}

// SwapResult is what swaps do to the steps of a full batch. Times are between the ends of steps.
type SwapResult struct {
	Median, P99, Worst                                     time.Duration // with swaps
	QuietMedian, QuietWorst                                time.Duration // without
	PerSecond                                              float64       // swaps that ended a second
	Batch, Steps, Prompt, Tokens, HostAdapters, AdapterMiB int
}

// Swaps decodes batch streams, each with its own adapter, of tokens tokens: once alone, and once while perSecond adapters of the host's memory a
// second replace others on the device; the streams are repeated until a swap has ended, and where too few of their steps were of the whole batch.
func (b *EngineBench) Swaps(ctx context.Context, batch, prompt, tokens, spare, host int, perSecond float64) (s SwapResult, err error) {
	s = SwapResult{Batch: batch, Prompt: prompt, Tokens: tokens, HostAdapters: host, AdapterMiB: int(b.AdapterBytes() >> 20)}
	r, err := b.start(Config{MaxSeqs: batch, MaxContext: prompt + tokens + 1}, int64(batch+spare)*b.AdapterBytes())
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, r.stop()) }()
	own := func(i int) adapters.Target { return benchTarget(i, b.c.Rank) }
	if err := r.bringAll(ctx, batch, batch+host); err != nil { // all of these are left in the host's memory
		return s, err
	}
	if err := r.streams(ctx, batch, prompt, 8, own); err != nil {
		return s, err
	}
	quiet, err := r.fullSteps(ctx, batch, prompt, tokens, own, func() bool { return true })
	if err != nil {
		return s, err
	}
	s.QuietMedian, s.QuietWorst = quantile(quiet, 0.5), quiet[len(quiet)-1]

	before := b.store.fetches()
	swapping, halt := context.WithCancel(ctx)
	swaps, failed := errgroup.WithContext(swapping)
	var ended atomic.Int64
	begin := time.Now()
	swaps.Go(func() error {
		tick := time.NewTicker(time.Duration(float64(time.Second) / perSecond))
		defer tick.Stop()
		for i := 0; ; i++ {
			select {
			case <-tick.C:
			case <-swapping.Done():
				return nil
			}
			swaps.Go(func() error {
				err := r.bring(swapping, benchTarget(batch+i%host, b.c.Rank))
				if err == nil {
					ended.Add(1)
				} else if swapping.Err() != nil {
					err = nil
				}
				return err
			})
		}
	})
	steps, err := r.fullSteps(ctx, batch, prompt, tokens, own, func() bool { return ended.Load() > 0 || failed.Err() != nil })
	took := time.Since(begin)
	halt()
	if err = errors.Join(swaps.Wait(), err); err != nil {
		return s, err
	}
	if n := b.store.fetches() - before; n > 0 {
		return s, fmt.Errorf("benchmark: %d swaps came from the store", n)
	}
	s.PerSecond = float64(ended.Load()) / took.Seconds()
	s.Steps, s.Median, s.P99, s.Worst = len(steps), quantile(steps, 0.5), quantile(steps, 0.99), steps[len(steps)-1]
	return s, nil
}

// FirstTokenResult compares first tokens with an adapter of the host's memory and with one on the device, by turns.
type FirstTokenResult struct {
	Pairs                    int
	Resident, Host           time.Duration // medians
	AddedP50, AddedP99       time.Duration // of host − the resident before it
	Beside                   int           // streams of the base that decode all the while
	AdapterMiB, HostAdapters int
}

// FirstToken measures it, beside that many decoding streams.
func (b *EngineBench) FirstToken(ctx context.Context, pairs, prompt, host, beside, context_ int) (f FirstTokenResult, err error) {
	f = FirstTokenResult{Pairs: pairs, Beside: beside, AdapterMiB: int(b.AdapterBytes() >> 20), HostAdapters: host}
	const room = 4 // B's on the device
	r, err := b.start(Config{MaxSeqs: beside + 2, MaxContext: context_}, room*b.AdapterBytes())
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, r.stop()) }()
	host = max(host, room+1)
	if err := r.bringAll(ctx, 1, 1+host); err != nil {
		return f, err
	}
	kept := benchTarget(0, b.c.Rank)
	if err := r.pool.Pin(kept); err != nil {
		return f, err
	}
	if err := r.bring(ctx, kept); err != nil {
		return f, err
	}
	streaming, halt := context.WithCancel(ctx)
	defer halt()
	var others errgroup.Group
	for i := range beside {
		others.Go(func() error {
			random := rand.New(rand.NewPCG(uint64(i), 9))
			for streaming.Err() == nil {
				if _, err := r.ask(streaming, random, adapters.Target{}, prompt, context_-prompt-1); err != nil && streaming.Err() == nil {
					return err
				}
			}
			return nil
		})
	}
	random := rand.New(rand.NewPCG(1, 10))
	var resident, fromHost, added []time.Duration
	var before adapters.PoolStats
	for i := 1 - room; i < pairs; i++ {
		if i == 0 { // the adapters before have filled the device
			before = r.pool.Stats()
		}
		var pair [2]time.Duration
		for j, a := range []adapters.Target{kept, benchTarget(1+(i+room)%host, b.c.Rank)} {
			time.Sleep(time.Duration(random.Int64N(int64(3 * time.Millisecond)))) // at any moment of a step
			t, err := r.ask(ctx, random, a, prompt, 1)
			if err != nil {
				return f, err
			}
			pair[j] = t.first
		}
		if i >= 0 {
			resident, fromHost, added = append(resident, pair[0]), append(fromHost, pair[1]), append(added, pair[1]-pair[0])
		}
	}
	after := r.pool.Stats()
	halt()
	if err := others.Wait(); err != nil {
		return f, err
	}
	if n := after.HostHits - before.HostHits; int(n) != pairs {
		return f, fmt.Errorf("benchmark: %d of %d first tokens were of the host's adapters", n, pairs)
	}
	for _, v := range [][]time.Duration{resident, fromHost, added} {
		slices.Sort(v)
	}
	f.Resident, f.Host, f.AddedP50, f.AddedP99 = quantile(resident, 0.5), quantile(fromHost, 0.5), quantile(added, 0.5), quantile(added, 0.99)
	return f, nil
}
