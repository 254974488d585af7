package infer

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"bhive/adapters"
	"bhive/kernels"
)

// DeviceBench measures steps of a model as an engine runs them on a device of its own: decode steps replay a captured graph, feed their
// tokens on the device and are enqueued while the one before runs.
type DeviceBench struct {
	m      *Model
	stream kernels.Stream
	table  kernels.AdapterTable
	cache  kernels.KVCache
	blocks int // of it
	slots  int
	rank   int
	a      allocator
}

const deviceBenchBlock = 16 // tokens in a KV block

// NewDeviceBench prepares for steps whose sequences have kvTokens tokens together, with slots adapters of a rank. Close frees it.
func NewDeviceBench(m *Model, kvTokens, slots, rank int) (*DeviceBench, error) {
	b := &DeviceBench{m: m, stream: m.Backend.NewStream(), blocks: blocksOf(kvTokens), slots: slots, rank: rank, a: allocator{mem: m.Backend}}
	var err error
	if b.cache, err = m.Backend.NewKVCache(m.KVSpec(b.blocks, deviceBenchBlock)); err != nil {
		b.Close()
		return nil, err
	}
	if b.table, err = m.Backend.NewAdapterTable(max(1, slots)); err != nil {
		b.Close()
		return nil, err
	}
	if err := b.SetRank(rank); err != nil {
		b.Close()
		return nil, err
	}
	return b, nil
}

// SetRank gives all slots new random B's.
func (b *DeviceBench) SetRank(rank int) error {
	b.a.free()
	b.rank = rank
	if b.m.Basis == nil {
		return nil
	}
	be, work := b.m.Backend, b.m.Backend.Info().Working
	n := rank * b.m.Geometry.OutTotal()
	noise := make([]byte, n*work.Size())
	packed := benchWeights(b.m.Geometry, rank, 1).Pack(PackType(work))
	copy(noise, packed)
	for slot := range b.slots {
		t := b.a.alloc(work, 1, n)
		if b.a.err != nil {
			return b.a.err
		}
		be.Upload(b.stream, t, noise) // the same values in memory of its own: what counts is where they lie
		be.SetAdapter(b.stream, b.table, slot, t, rank)
	}
	return b.stream.Sync()
}

// Close frees the bench.
func (b *DeviceBench) Close() {
	if b.cache != nil {
		b.m.Backend.FreeKVCache(b.cache)
	}
	b.a.free()
	if b.table != nil {
		b.m.Backend.FreeAdapterTable(b.table)
	}
	b.m.Backend.FreeStream(b.stream)
}

func blocksOf(tokens int) int { return (tokens + deviceBenchBlock - 1) / deviceBenchBlock }

// seqs are batch sequences of that many tokens, with room for longest.
func (b *DeviceBench) seqs(batch, tokens, distinct, longest int) ([]StepSeq, error) {
	each := blocksOf(longest)
	if batch*each > b.blocks {
		return nil, fmt.Errorf("device benchmark: %d sequences of %d tokens in %d KV blocks: %w", batch, longest, b.blocks, ErrSequenceTooLong)
	}
	r := rand.New(rand.NewPCG(1, 4))
	out := make([]StepSeq, batch)
	for i := range out {
		q := &out[i]
		q.Adapter, q.Lane = adapters.BaseSlot, -1
		if distinct > 0 {
			q.Adapter = i * distinct / batch // as a step of the engine, which goes by adapter
		}
		for range tokens {
			q.Tokens = append(q.Tokens, r.Int32N(int32(b.m.Config.Vocab)))
		}
		for j := range each {
			q.Blocks = append(q.Blocks, int32(i*each+j))
		}
	}
	return out, nil
}

// flightsOf is the steps under way at once.
const flightsOf = 2

// Decode runs steps of a batch from a context on, with that many distinct adapters (0: the base), and gives each step's share of the time.
func (b *DeviceBench) Decode(ctx context.Context, batch, distinct, context, steps int) (time.Duration, error) {
	longest := context + steps + 4
	seqs, err := b.seqs(batch, 1, distinct, longest)
	if err != nil {
		return 0, err
	}
	be := b.m.Backend
	mem := resources{backend: be}
	defer mem.free()
	bucket := kernels.Bucket{Tokens: batch, Seqs: batch, Rows: batch, Blocks: blocksOf(longest), MaxQuery: 1}
	step := kernels.Step{Bucket: bucket, Words: mem.tensor(kernels.I32, 1, kernels.RecordWords(bucket))}
	var records [flightsOf]*kernels.Record
	var tokens [flightsOf][]int32
	for i := range records {
		records[i] = kernels.NewRecord(bucket, mem.words(kernels.RecordWords(bucket)))
		tokens[i] = mem.words(batch)
	}
	if mem.err != nil {
		return 0, mem.err
	}
	st, err := NewState(b.m, batch, batch)
	if err != nil {
		return 0, err
	}
	defer st.Close()
	ops := func() {
		b.m.Serve(b.stream, st, StepContext{Step: step, Cache: b.cache, Table: b.table, Previous: st.Sampled[0]})
		be.Sample(b.stream, st.Sampled[0], st.Logits, kernels.SamplerState{}, step)
	}
	for i := range seqs {
		seqs[i].Start, seqs[i].Rows = context-4, []Row{GreedyRow(0)}
	}
	// The first steps warm up; one runs outside the graph, so that everything is planned before it is captured.
	FillRecord(records[0], deviceBenchBlock, seqs)
	be.Upload(b.stream, step.Words, records[0].Bytes())
	ops()
	if err := b.stream.Sync(); err != nil {
		return 0, err
	}
	graph, err := be.Capture(b.stream, ops)
	if err != nil {
		return 0, err
	}
	defer graph.Close()
	var done [flightsOf]kernels.Event
	var begin time.Time
	for i := range steps + 3 {
		if i == 3 {
			if err := b.stream.Sync(); err != nil {
				return 0, err
			}
			begin = time.Now()
		}
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
		f := i % flightsOf
		if done[f] != nil {
			if err := done[f].Wait(); err != nil {
				return 0, err
			}
		}
		for j := range seqs {
			seqs[j].Start++
			seqs[j].Feed = []int32{int32(j)}
		}
		FillRecord(records[f], deviceBenchBlock, seqs)
		be.Upload(b.stream, step.Words, records[f].Bytes())
		graph.Launch(b.stream)
		be.Download(b.stream, i32Bytes(tokens[f]), st.Sampled[0].Token)
		done[f] = b.stream.Record()
	}
	if err := b.stream.Sync(); err != nil {
		return 0, err
	}
	return time.Since(begin) / time.Duration(steps), nil
}

// Prefill computes batch prompts of n tokens in steps of up to budget tokens, rounds times, and gives the median time of all of them.
func (b *DeviceBench) Prefill(ctx context.Context, batch, distinct, n, budget, rounds int) (time.Duration, error) {
	be := b.m.Backend
	mem := resources{backend: be}
	defer mem.free()
	together := max(1, budget/n) // prompts of a step
	all, err := b.seqs(batch, n, distinct, n)
	if err != nil {
		return 0, err
	}
	bucket := kernels.Bucket{Tokens: together * n, Seqs: together, Rows: together, Blocks: blocksOf(n), MaxQuery: n}
	step := kernels.Step{Bucket: bucket, Words: mem.tensor(kernels.I32, 1, kernels.RecordWords(bucket))}
	if mem.err != nil {
		return 0, mem.err
	}
	st, err := NewState(b.m, bucket.Tokens, bucket.Rows)
	if err != nil {
		return 0, err
	}
	defer st.Close()
	for i := range all {
		all[i].Rows = []Row{GreedyRow(n - 1)}
	}
	tokens := mem.words(together)
	var times []time.Duration
	for range rounds + 1 {
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
		begin := time.Now()
		for at := 0; at < batch; at += together {
			rec := kernels.NewRecord(bucket, nil)
			FillRecord(rec, deviceBenchBlock, all[at:min(at+together, batch)])
			be.Upload(b.stream, step.Words, rec.Bytes())
			b.m.Serve(b.stream, st, StepContext{Step: step, Cache: b.cache, Table: b.table})
			be.Sample(b.stream, st.Sampled[0], st.Logits, kernels.SamplerState{}, step)
			be.Download(b.stream, i32Bytes(tokens), st.Sampled[0].Token)
		}
		if err := b.stream.Sync(); err != nil {
			return 0, err
		}
		times = append(times, time.Since(begin))
	}
	times = times[1:]
	slices.Sort(times)
	return times[len(times)/2], nil
}

// Ceilings measures a large copy, in bytes read and written a second, and a large product of the device's own linears, in operations a second.
func (b *DeviceBench) Ceilings() (bandwidth, flops float64, err error) {
	be := b.m.Backend
	a := allocator{mem: be}
	defer a.free()
	side, m := 1<<14, 8192 // 1 GiB of float32
	if be.Info().CopyInPlace {
		side, m = 1<<12, 512 // a CPU's caches are small enough
	}
	src, dst := a.alloc(kernels.F32, side, side), a.alloc(kernels.F32, side, side)
	if a.err != nil {
		return 0, 0, a.err
	}
	best := func(n int, f func()) (time.Duration, error) {
		fastest := time.Hour
		for range 5 {
			if err := b.stream.Sync(); err != nil {
				return 0, err
			}
			begin := time.Now()
			for range n {
				f()
			}
			if err := b.stream.Sync(); err != nil {
				return 0, err
			}
			fastest = min(fastest, time.Since(begin)/time.Duration(n))
		}
		return fastest, nil
	}
	t, err := best(10, func() { be.Copy(b.stream, dst, src) })
	if err != nil {
		return 0, 0, err
	}
	bandwidth = 2 * 4 * float64(side) * float64(side) / t.Seconds()
	act := be.Info().Activation
	w := b.m.Layers[0].MLPIn
	x, y := a.alloc(act, m, w.In()), a.alloc(act, m, w.Out()+w.R())
	bucket := kernels.Bucket{Tokens: m, Seqs: 1, Rows: 1, Blocks: 1, MaxQuery: m}
	words := a.alloc(kernels.I32, 1, kernels.RecordWords(bucket))
	if a.err != nil {
		return 0, 0, a.err
	}
	rec := kernels.NewRecord(bucket, nil)
	rec.Head[kernels.HeadTokens] = int32(m)
	be.Upload(b.stream, words, rec.Bytes())
	r := rand.New(rand.NewPCG(1, 9))
	noise := make([]uint16, m*w.In())
	for i := range noise { // ±(1 … 2)
		noise[i] = 0x3f80 | uint16(r.Uint32()&0x807f)
	}
	if act == kernels.BF16 {
		be.Upload(b.stream, x, u16Bytes(noise))
	}
	step := kernels.Step{Bucket: bucket, Words: words}
	if t, err = best(3, func() { be.Linear(b.stream, y, x, w, step) }); err != nil {
		return 0, 0, err
	}
	return bandwidth, 2 * float64(m) * float64(w.In()) * float64(w.Out()+w.R()) / t.Seconds(), nil
}

// Link measures copies out of pinned memory to the device, in bytes a second.
func (b *DeviceBench) Link() (float64, error) {
	be := b.m.Backend
	a := allocator{mem: be}
	defer a.free()
	const size = 64 << 20
	src, err := be.Pinned(size)
	if err != nil {
		return 0, err
	}
	defer be.FreePinned(src)
	dst := a.alloc(kernels.U8, 1, size)
	if a.err != nil {
		return 0, a.err
	}
	fastest := time.Hour
	for range 5 {
		if err := b.stream.Sync(); err != nil {
			return 0, err
		}
		begin := time.Now()
		for range 4 {
			be.Upload(b.stream, dst, src)
		}
		if err := b.stream.Sync(); err != nil {
			return 0, err
		}
		fastest = min(fastest, time.Since(begin)/4)
	}
	return size / fastest.Seconds(), nil
}

// StepBytes is the least that a decode step reads.
func (b *DeviceBench) StepBytes(batch, distinct, context int) int64 {
	return b.m.stepBytes(batch, distinct, b.rank, context)
}
