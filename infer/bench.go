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

// BenchConfig says what Bench measures. The zero value of a field is its default.
type BenchConfig struct {
	Batches  []int // sizes of decode batches; nil: 1 and 8, empty: no decode
	Rank     int   // of the adapters; default 16, at most the model's R
	Context  int   // tokens of context at the middle of a decode measurement; default 128
	Steps    int   // decode steps of each kind; default 48
	Prefill  int   // tokens of the prompt; default 256
	Prefills int   // prompts measured; default 5, negative: none
	BaseOnly bool  // no decode with adapters
}

// BenchResult is what Bench measured. Times are medians.
type BenchResult struct {
	Decode  []DecodeResult `json:"decode"`
	Prefill PrefillResult  `json:"prefill"`
}

// DecodeResult is one kind of decode step.
type DecodeResult struct {
	Batch           int           `json:"batch"`
	Adapters        int           `json:"adapters"` // distinct adapters in the batch; 0: the base
	Step            time.Duration `json:"step_ns"`
	TokensPerSecond float64       `json:"tokens_per_second"`
	Bytes           int64         `json:"bytes"`            // read by a step: weights, B's, K and V
	BytesPerSecond  float64       `json:"bytes_per_second"` // of them
}

// PrefillResult is the time of one prompt, alone, to its first token's logits.
type PrefillResult struct {
	Tokens          int           `json:"tokens"`
	Time            time.Duration `json:"time_ns"`
	TokensPerSecond float64       `json:"tokens_per_second"`
}

// Bench measures the model's steps themselves, without scheduler and text: decode batches of the base and with as many distinct
// adapters (their B's random) as sequences, and prefill. Kinds take turns, step by step, so that noise of the machine meets all of them.
func Bench(ctx context.Context, m *Model, c BenchConfig) (BenchResult, error) {
	if c.Batches == nil {
		c.Batches = []int{1, 8}
	}
	for _, f := range []struct {
		at *int
		v  int
	}{{&c.Rank, 16}, {&c.Context, 128}, {&c.Steps, 48}, {&c.Prefill, 256}, {&c.Prefills, 5}} {
		if *f.at == 0 {
			*f.at = f.v
		}
	}
	c.Rank = min(c.Rank, m.R())
	if longest := max(c.Prefill, c.Context+c.Steps/2+1); longest > m.Positions {
		return BenchResult{}, fmt.Errorf("benchmark: a context of %d tokens, the model has %d: %w", longest, m.Positions, ErrSequenceTooLong)
	}
	b := &benchRun{m: m, c: c}
	defer b.close()
	if err := b.open(); err != nil {
		return BenchResult{}, fmt.Errorf("benchmark: %w", err)
	}
	return b.run(ctx)
}

const benchBlock = 16 // tokens in a KV block

type benchRun struct {
	m      *Model
	c      BenchConfig
	stream kernels.Stream
	table  kernels.AdapterTable
	cache  kernels.KVCache
	kinds  []*benchKind
	a      allocator
}

// benchKind is a kind of step with everything that it runs on.
type benchKind struct {
	batch    int
	adapters int
	prefill  int // tokens of each sequence; 0: a decode step
	state    *State
	record   *kernels.Record
	step     kernels.Step
	seqs     []StepSeq
	times    []time.Duration
}

func (b *benchRun) open() (err error) {
	m, most := b.m, slices.Max(append([]int{1}, b.c.Batches...))
	adapted := m.Basis != nil && !b.c.BaseOnly
	b.a.mem = m.Backend
	b.stream = m.Backend.NewStream()
	longest := max(b.c.Prefill, b.c.Context+b.c.Steps/2+1)
	perSeq := (longest + benchBlock - 1) / benchBlock
	if b.cache, err = m.Backend.NewKVCache(m.KVSpec(perSeq*most, benchBlock)); err != nil {
		return err
	}
	if b.table, err = m.Backend.NewAdapterTable(most); err != nil {
		return err
	}
	if adapted {
		work := m.Backend.Info().Working
		for slot := range most {
			t := b.a.alloc(work, 1, b.c.Rank*m.Geometry.OutTotal())
			if b.a.err != nil {
				return b.a.err
			}
			m.Backend.Upload(b.stream, t, benchWeights(m.Geometry, b.c.Rank, slot).Pack(PackType(work)))
			m.Backend.SetAdapter(b.stream, b.table, slot, t, b.c.Rank)
		}
	}
	for _, n := range b.c.Batches {
		for _, with := range []bool{false, true} {
			if with && !adapted {
				continue
			}
			k := &benchKind{batch: n}
			if with {
				k.adapters = n
			}
			b.kinds = append(b.kinds, k)
		}
	}
	if b.c.Prefills > 0 {
		b.kinds = append(b.kinds, &benchKind{batch: 1, prefill: b.c.Prefill})
	}
	for _, k := range b.kinds {
		if err := b.prepare(k, perSeq); err != nil {
			return err
		}
	}
	return nil
}

// benchWeights is a random B.
func benchWeights(g adapters.Geometry, rank, seed int) *adapters.Weights {
	w, r := adapters.NewWeights(g, rank, float64(rank)), rand.New(rand.NewPCG(uint64(seed), 3))
	for i := range w.Data {
		w.Data[i] = (r.Float32() - 0.5) / 64
	}
	return w
}

func (b *benchRun) prepare(k *benchKind, perSeq int) (err error) {
	n := max(1, k.prefill)
	bucket := kernels.Bucket{Tokens: k.batch * n, Seqs: k.batch, Rows: k.batch, Blocks: perSeq, MaxQuery: n}
	words := b.a.alloc(kernels.I32, 1, kernels.RecordWords(bucket))
	if b.a.err != nil {
		return b.a.err
	}
	k.record, k.step = kernels.NewRecord(bucket, nil), kernels.Step{Bucket: bucket, Words: words}
	if k.state, err = NewState(b.m, bucket.Tokens, bucket.Rows); err != nil {
		return err
	}
	r := rand.New(rand.NewPCG(1, 4))
	blocks := make([]int32, k.batch*perSeq) // in no order, as an engine's are after a while
	for i, v := range r.Perm(len(blocks)) {
		blocks[i] = int32(v)
	}
	for i := range k.batch {
		q := StepSeq{Adapter: adapters.BaseSlot, Lane: -1, Rows: []Row{GreedyRow(n - 1)}}
		if k.adapters > 0 {
			q.Adapter = i
		}
		for range n {
			q.Tokens = append(q.Tokens, r.Int32N(int32(b.m.Config.Vocab)))
		}
		q.Blocks = blocks[i*perSeq:][:perSeq]
		if k.prefill == 0 {
			q.Start = b.c.Context - b.c.Steps/2
		}
		k.seqs = append(k.seqs, q)
	}
	return nil
}

// once runs one step as an engine does: record, upload, ops, sampled tokens.
func (b *benchRun) once(k *benchKind) (time.Duration, error) {
	be, tokens := b.m.Backend, make([]int32, k.batch)
	begin := time.Now()
	FillRecord(k.record, benchBlock, k.seqs)
	be.Upload(b.stream, k.step.Words, k.record.Bytes())
	b.m.Serve(b.stream, k.state, StepContext{Step: k.step, Cache: b.cache, Table: b.table})
	be.Sample(b.stream, k.state.Sampled[0], k.state.Logits, kernels.SamplerState{}, k.step)
	be.Download(b.stream, i32Bytes(tokens), k.state.Sampled[0].Token)
	err := b.stream.Sync()
	took := time.Since(begin)
	if k.prefill == 0 {
		for i := range k.seqs {
			k.seqs[i].Start++
			k.seqs[i].Tokens[0] = tokens[i]
		}
	}
	return took, err
}

func (b *benchRun) run(ctx context.Context) (BenchResult, error) {
	rounds := b.c.Steps
	if len(b.c.Batches) == 0 {
		rounds = b.c.Prefills
	}
	for round := -1; round < rounds; round++ { // the first one warms up
		for _, k := range b.kinds {
			if k.prefill > 0 && round >= b.c.Prefills {
				continue
			}
			if err := ctx.Err(); err != nil {
				return BenchResult{}, err
			}
			took, err := b.once(k)
			if err != nil {
				return BenchResult{}, fmt.Errorf("benchmark: %w", err)
			}
			if round >= 0 {
				k.times = append(k.times, took)
			}
		}
	}
	var out BenchResult
	for _, k := range b.kinds {
		slices.Sort(k.times)
		median := k.times[len(k.times)/2]
		if k.prefill > 0 {
			out.Prefill = PrefillResult{k.prefill, median, float64(k.prefill) / median.Seconds()}
			continue
		}
		bytes := b.m.stepBytes(k.batch, k.adapters, b.c.Rank, b.c.Context)
		out.Decode = append(out.Decode, DecodeResult{k.batch, k.adapters, median, float64(k.batch) / median.Seconds(), bytes, float64(bytes) / median.Seconds()})
	}
	return out, nil
}

func (b *benchRun) close() {
	for _, k := range b.kinds {
		if k.state != nil {
			k.state.Close()
		}
	}
	if b.cache != nil {
		b.m.Backend.FreeKVCache(b.cache)
	}
	b.a.free()
	if b.table != nil {
		b.m.Backend.FreeAdapterTable(b.table)
	}
	if b.stream != nil {
		b.m.Backend.FreeStream(b.stream)
	}
}
