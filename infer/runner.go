package infer

import (
	"errors"
	"fmt"
	"time"

	"bhive/kernels"
)

// runner is the engine's share of a device: KV cache, activations, step records, sampler state, and the steps under way.
type runner struct {
	model   *Model
	own     bool // stream and table are not the adapters' device's
	config  Config
	vocab   int
	mem     resources
	stream  kernels.Stream
	cache   kernels.KVCache
	table   kernels.AdapterTable
	state   *State
	sampler kernels.SamplerState
	buckets []*bucket
	results []*results // used in turn
	turn    int
}

// results is host memory for what a step drew, a row each.
type results struct {
	token, rank, topID []int32
	logprob, top       []float32
}

// flight is a step that is enqueued and not read.
type flight struct {
	plan
	out   *results
	done  kernels.Event
	start time.Time
	begun time.Time     // when it was enqueued
	host  time.Duration // scheduling and metadata
	keep  [][]byte      // what uploads read
	err   error         // it could not be enqueued

	units  bool          // of background work run just before it
	shared bool          // they were to fit
	lost   time.Duration // what they could have taken besides
	behind int           // units before it, of all
	waited time.Duration // since it was enqueued, for those
}

// over reports whether nothing of it is under way.
func (f *flight) over() bool { return f.err != nil || f.done.Done() }

// draws is how many tokens it draws: the decodes of the next step, where no prompt comes.
func (f *flight) draws() (n int) {
	for _, it := range f.items {
		if it.draw {
			n++
		}
	}
	return n
}

// openRunner allocates everything; its config has the size of the KV cache, which comes last and may take what is left. Where it fails
// nothing stays allocated.
func openRunner(c Config, m *Model, adapters *Device) (d *runner, err error) {
	d = &runner{model: m, config: c, vocab: m.Config.Vocab, mem: resources{backend: m.Backend}}
	defer func() {
		if p := recover(); p != nil { // scratch of a captured step
			var ok bool
			if err, ok = p.(error); !ok || !errors.Is(err, kernels.ErrNoMemory) {
				panic(p)
			}
		}
		if err != nil {
			d.close()
			err = fmt.Errorf("opening the engine with %d KV blocks: %w", d.config.KVBlocks, err)
			d = nil
		}
	}()
	if adapters != nil {
		d.stream, d.table = adapters.serving, adapters.Table
	} else {
		d.stream, d.own = m.Backend.NewStream(), true
		if d.table, err = m.Backend.NewAdapterTable(1); err != nil {
			return d, err
		}
	}
	rows := c.MaxSeqs + c.PromptRows
	if d.state, err = NewState(m, c.MaxTokens, rows); err != nil {
		return d, err
	}
	d.sampler = kernels.SamplerState{
		Counts: d.mem.tensor(kernels.I32, c.MaxSeqs, d.vocab),
		BiasID: d.mem.tensor(kernels.I32, c.MaxSeqs, kernels.MaxBias),
		Bias:   d.mem.tensor(kernels.F32, c.MaxSeqs, kernels.MaxBias),
		Mask:   d.mem.tensor(kernels.I32, c.MaxSeqs, maskWords(d.vocab)),
	}
	for range c.flights() {
		f := d.mem.words(rows)
		g := d.mem.words(rows * kernels.MaxTopLogprobs)
		d.results = append(d.results, &results{token: d.mem.words(rows), rank: d.mem.words(rows),
			topID: d.mem.words(rows * kernels.MaxTopLogprobs), logprob: floats(f), top: floats(g)})
	}
	for _, shape := range bucketShapes(c) {
		n := kernels.RecordWords(shape)
		b := &bucket{Bucket: shape, step: kernels.Step{Bucket: shape, Words: d.mem.tensor(kernels.I32, 1, n)}}
		for range c.flights() {
			b.records = append(b.records, kernels.NewRecord(shape, d.mem.words(n)))
		}
		d.buckets = append(d.buckets, b)
	}
	if d.mem.err != nil {
		return d, d.mem.err
	}
	if c.KVBlocks == 0 {
		if d.config, err = c.withFreeMemory(m.Backend.Info(), m.KVTokenBytes()); err != nil {
			return d, err
		}
	}
	if d.cache, err = m.Backend.NewKVCache(m.KVSpec(d.config.KVBlocks, c.BlockTokens)); err != nil {
		return d, err
	}
	if c.Graphs {
		for _, b := range d.buckets {
			if b.MaxQuery == 1 {
				if b.graph, err = m.Backend.Capture(d.stream, func() { d.ops(b) }); err != nil {
					return d, fmt.Errorf("capturing a step of %d sequences: %w", b.Seqs, err)
				}
			}
		}
	}
	return d, d.stream.Sync()
}

// close frees everything. It may be called twice.
func (d *runner) close() {
	for _, b := range d.buckets {
		if b.graph != nil {
			b.graph.Close()
		}
	}
	d.buckets = nil
	if d.state != nil {
		d.state.Close()
	}
	if d.cache != nil {
		d.model.Backend.FreeKVCache(d.cache)
		d.cache = nil
	}
	d.mem.free()
	if d.own {
		if d.table != nil {
			d.model.Backend.FreeAdapterTable(d.table)
		}
		d.model.Backend.FreeStream(d.stream)
		d.own, d.table = false, nil
	}
}

// ops enqueues a bucket's ops: what a graph replays.
func (d *runner) ops(b *bucket) {
	sampled := d.state.Sampled[0] // read at the step's beginning, written at its end
	d.model.Serve(d.stream, d.state, StepContext{Step: b.step, Cache: d.cache, Table: d.table, Previous: sampled})
	d.model.Backend.Sample(d.stream, sampled, d.state.Logits, d.sampler, b.step)
}

// launch enqueues a planned step. A failure is kept in f.err: it fails the step only.
func (d *runner) launch(f *flight) {
	defer func() {
		if p := recover(); p != nil {
			f.err = panicked(p)
		}
	}()
	b := bucketFor(d.buckets, &f.plan)
	rec := b.next()
	fill(rec, &f.plan, d.config.BlockTokens)
	be := d.model.Backend
	be.Upload(d.stream, b.step.Words, rec.Bytes())
	f.host = time.Since(f.start)
	if b.graph != nil {
		b.graph.Launch(d.stream)
	} else {
		d.ops(b)
	}
	d.turn = (d.turn + 1) % len(d.results)
	f.out = d.results[d.turn]
	if n := f.rows; n > 0 {
		s := d.state.Sampled[0]
		be.Download(d.stream, bytesOf(f.out.token[:n]), s.Token)
		logprobs, tops := false, false
		for _, it := range f.items {
			logprobs = logprobs || it.Params.Logprobs >= 0 || it.score > 0
			tops = tops || it.Params.Logprobs > 0
		}
		if logprobs {
			be.Download(d.stream, bytesOf(f.out.logprob[:n]), s.Logprob)
			be.Download(d.stream, bytesOf(f.out.rank[:n]), s.Rank)
		}
		if tops {
			n *= kernels.MaxTopLogprobs
			be.Download(d.stream, bytesOf(f.out.topID[:n]), s.TopID)
			be.Download(d.stream, bytesOf(f.out.top[:n]), s.TopLogprob)
		}
	}
	f.done = d.stream.Record()
}

// errSticky marks a device error after which nothing on the device can be trusted.
var errSticky = errors.New("the device failed")

// patience is how long the engine sleeps between two looks at a step under way.
const patience = 50 * time.Microsecond

// wait waits for a step's results. Meanwhile, where it is not nil, it calls meanwhile again and again.
func (d *runner) wait(f *flight, meanwhile func()) error {
	if f.err != nil {
		return f.err
	}
	for meanwhile != nil && !f.done.Done() {
		meanwhile()
		time.Sleep(patience)
	}
	if err := f.done.Wait(); err != nil {
		return fmt.Errorf("%w: %w", errSticky, err)
	}
	return nil
}

func panicked(p any) error {
	if err, ok := p.(error); ok {
		return fmt.Errorf("panic: %w", err)
	}
	return fmt.Errorf("panic: %v", p)
}
