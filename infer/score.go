package infer

import (
	"context"
	"fmt"
	"unsafe"

	"bhive/adapters"
	"bhive/kernels"
)

// ScorerConfig sizes a scorer. The zero value of a field is its default.
type ScorerConfig struct {
	Tokens      int // most tokens of a step; default 256
	Seqs        int // most sequences of a step; default 16
	Chunk       int // most tokens of one sequence in a step; default: Tokens
	KVTokens    int // tokens of KV in all; no sequence can be longer; default 2048
	BlockTokens int // P; default 16
	Slots       int // adapter slots; default 8
}

func (c ScorerConfig) defaults() ScorerConfig {
	for _, f := range []struct {
		at *int
		v  int
	}{{&c.Tokens, 256}, {&c.Seqs, 16}, {&c.KVTokens, 2048}, {&c.BlockTokens, 16}, {&c.Slots, 8}} {
		if *f.at == 0 {
			*f.at = f.v
		}
	}
	if c.Chunk == 0 {
		c.Chunk = c.Tokens
	}
	c.Chunk, c.Seqs = min(c.Chunk, c.Tokens), min(c.Seqs, c.Tokens)
	return c
}

// Scorer runs sequences through a model without an engine: for evaluation, calibration and tests. It has a stream, a KV cache and an
// adapter table of its own. It is not safe for concurrent use, and its methods are called where ops may be called.
type Scorer struct {
	m      *Model
	config ScorerConfig

	stream  kernels.Stream
	state   *State // with rows of logits, from the first Step or Logits on
	cache   kernels.KVCache
	table   kernels.AdapterTable
	serving stepBuffer
	train   stepBuffer
	nll     kernels.Tensor // F32 [1, T]
	logits  []float32      // [rows, V] on the host
	blocks  []kernels.Tensor
	tensors []kernels.Tensor
	free    []int32 // KV blocks
}

// Sequence is a text to score.
type Sequence struct {
	Tokens  []int32
	Adapter int     // adapter slot, or adapters.BaseSlot
	Labels  []int32 // NLL only: token to be predicted at each position, or −1
}

// Loss is a sum of negative log-likelihoods.
type Loss struct {
	Sum    float64 // nats
	Tokens int     // how many labels it is over
}

// Mean is the loss per token, 0 for none.
func (l Loss) Mean() float64 {
	if l.Tokens == 0 {
		return 0
	}
	return l.Sum / float64(l.Tokens)
}

// stepBuffer is a step record on the host and on the device.
type stepBuffer struct {
	record *kernels.Record
	step   kernels.Step
}

// NewScorer allocates a scorer; Close frees it. It returns kernels.ErrNoMemory where it does not fit.
func NewScorer(m *Model, c ScorerConfig) (*Scorer, error) {
	c = c.defaults()
	s := &Scorer{m: m, config: c, stream: m.Backend.NewStream(), blocks: make([]kernels.Tensor, c.Slots)}
	if err := s.open(); err != nil {
		s.Close()
		return nil, fmt.Errorf("making a scorer: %w", err)
	}
	return s, nil
}

func (s *Scorer) open() (err error) {
	c := s.config
	blocks := (c.KVTokens + c.BlockTokens - 1) / c.BlockTokens
	if s.cache, err = s.m.Backend.NewKVCache(s.m.KVSpec(blocks, c.BlockTokens)); err != nil {
		return err
	}
	for b := range blocks {
		s.free = append(s.free, int32(b))
	}
	if s.table, err = s.m.Backend.NewAdapterTable(c.Slots); err != nil {
		return err
	}
	bucket := kernels.Bucket{Tokens: c.Tokens, Seqs: c.Seqs, Rows: c.Tokens, Blocks: blocks, MaxQuery: c.Tokens}
	if s.serving, err = s.newStep(bucket); err != nil {
		return err
	}
	bucket.Training, bucket.Rows = true, 0
	if s.train, err = s.newStep(bucket); err != nil {
		return err
	}
	if s.nll, err = s.alloc(kernels.F32, 1, c.Tokens); err != nil {
		return err
	}
	s.state, err = NewState(s.m, c.Tokens, 0)
	return err
}

func (s *Scorer) alloc(d kernels.DType, rows, cols int) (kernels.Tensor, error) {
	t, err := s.m.Backend.Alloc(d, rows, cols)
	if err == nil {
		s.tensors = append(s.tensors, t)
	}
	return t, err
}

func (s *Scorer) newStep(b kernels.Bucket) (stepBuffer, error) {
	t, err := s.alloc(kernels.I32, 1, kernels.RecordWords(b))
	return stepBuffer{kernels.NewRecord(b, nil), kernels.Step{Bucket: b, Words: t}}, err
}

// Close frees the scorer. It may be called twice.
func (s *Scorer) Close() {
	if s.state != nil {
		s.state.Close()
	}
	if s.cache != nil {
		s.m.Backend.FreeKVCache(s.cache)
	}
	for _, t := range append(s.tensors, s.blocks...) {
		if t.Present() {
			s.m.Backend.Free(t)
		}
	}
	if s.table != nil {
		s.m.Backend.FreeAdapterTable(s.table)
	}
	if s.stream != nil {
		s.m.Backend.FreeStream(s.stream)
	}
	s.stream, s.table = nil, nil
	s.state, s.cache, s.tensors, s.blocks = nil, nil, nil, nil
}

// SetAdapter puts a B into an adapter slot; nil empties it.
func (s *Scorer) SetAdapter(slot int, w *adapters.Weights) error {
	be := s.m.Backend
	var t kernels.Tensor
	rank := 0
	if w != nil {
		if w.Geometry != s.m.Geometry {
			return fmt.Errorf("setting adapter slot %d: %w", slot, adapters.ErrBaseMismatch)
		}
		if w.Rank > s.m.R() {
			return fmt.Errorf("setting adapter slot %d: rank %d over %d rows of A: %w", slot, w.Rank, s.m.R(), adapters.ErrRank)
		}
		var err error
		if t, err = be.Alloc(be.Info().Working, 1, len(w.Data)); err != nil {
			return fmt.Errorf("setting adapter slot %d: %w", slot, err)
		}
		be.Upload(s.stream, t, w.Pack(PackType(be.Info().Working)))
		rank = w.Rank
	}
	be.SetAdapter(s.stream, s.table, slot, t, rank)
	err := s.stream.Sync()
	if s.blocks[slot].Present() {
		be.Free(s.blocks[slot])
	}
	s.blocks[slot] = t
	return err
}

// Step runs one serving step and returns the logits of its rows, [rows, V]; they are valid until the next step. The caller
// gives out KV blocks by itself: 0 … KVTokens/BlockTokens−1.
func (s *Scorer) Step(seqs []StepSeq) ([]float32, error) {
	if s.state.Rows == 0 {
		st, err := NewState(s.m, s.config.Tokens, s.config.Tokens)
		if err != nil {
			return nil, err
		}
		s.state.Close()
		s.state = st
		s.logits = make([]float32, s.config.Tokens*s.m.Config.Vocab)
	}
	FillRecord(s.serving.record, s.config.BlockTokens, seqs)
	s.m.Backend.Upload(s.stream, s.serving.step.Words, s.serving.record.Bytes())
	s.m.Serve(s.stream, s.state, StepContext{Step: s.serving.step, Cache: s.cache, Table: s.table})
	out := s.logits[:int(s.serving.record.Head[kernels.HeadRows])*s.m.Config.Vocab]
	s.m.Backend.Download(s.stream, f32Bytes(out), s.state.Logits)
	return out, s.stream.Sync()
}

// Logits gives visit the logits at every position of every sequence, [V], valid during the call. Positions of one sequence
// come in order.
func (s *Scorer) Logits(ctx context.Context, seqs []Sequence, visit func(seq, position int, logits []float32)) error {
	v := s.m.Config.Vocab
	return s.schedule(ctx, seqs, func(step []StepSeq, ids []int) error {
		for i := range step {
			for t := range step[i].Tokens {
				step[i].Rows = append(step[i].Rows, GreedyRow(t))
			}
		}
		out, err := s.Step(step)
		if err != nil {
			return err
		}
		for i := range step {
			for t := range step[i].Tokens {
				visit(ids[i], step[i].Start+t, out[:v])
				out = out[v:]
			}
		}
		return nil
	})
}

// NLL is the loss of each sequence over its labels.
func (s *Scorer) NLL(ctx context.Context, seqs []Sequence) ([]Loss, error) {
	losses := make([]Loss, len(seqs))
	nll := make([]float32, s.config.Tokens)
	err := s.schedule(ctx, seqs, func(step []StepSeq, ids []int) error {
		sc := s.trainStep(step)
		s.m.EmbedTokens(s.stream, s.state, sc, nil)
		s.m.Forward(s.stream, s.state, sc, 0, len(s.m.Layers), nil)
		s.m.Backend.CrossEntropy(s.stream, s.nll, kernels.Tensor{}, s.state.Normed, kernels.Tensor{}, s.m.Head, sc.Step)
		s.m.Backend.Download(s.stream, f32Bytes(nll), s.nll)
		if err := s.stream.Sync(); err != nil {
			return err
		}
		at := 0
		for i := range step {
			for _, label := range step[i].Labels {
				if label >= 0 {
					losses[ids[i]].Sum += float64(nll[at])
					losses[ids[i]].Tokens++
				}
				at++
			}
		}
		return nil
	})
	return losses, err
}

// trainStep uploads a step with labels.
func (s *Scorer) trainStep(step []StepSeq) StepContext {
	FillRecord(s.train.record, s.config.BlockTokens, step)
	s.m.Backend.Upload(s.stream, s.train.step.Words, s.train.record.Bytes())
	return StepContext{Step: s.train.step, Cache: s.cache, Table: s.table}
}

// schedule cuts the sequences into steps, several in one where they fit, and calls run for each; ids are the sequences' indices.
func (s *Scorer) schedule(ctx context.Context, seqs []Sequence, run func(step []StepSeq, ids []int) error) error {
	type active struct {
		id, done int
		blocks   []int32
	}
	p := s.config.BlockTokens
	var running []active
	free := append([]int32(nil), s.free...)
	next := 0
	for next < len(seqs) || len(running) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		for next < len(seqs) && len(running) < s.config.Seqs {
			n := len(seqs[next].Tokens)
			need := (n + p - 1) / p
			if need > len(s.free) || n > s.m.Positions {
				return fmt.Errorf("scoring sequence %d: %d tokens, at most %d: %w", next, n, min(len(s.free)*p, s.m.Positions), ErrSequenceTooLong)
			}
			if need > len(free) {
				break
			}
			if n > 0 {
				running = append(running, active{id: next, blocks: append([]int32(nil), free[:need]...)})
				free = free[need:]
			}
			next++
		}
		var step []StepSeq
		var ids []int
		budget := s.config.Tokens
		for i := range running {
			a := &running[i]
			q := &seqs[a.id]
			n := min(s.config.Chunk, len(q.Tokens)-a.done, budget)
			if n == 0 {
				break
			}
			part := StepSeq{Tokens: q.Tokens[a.done : a.done+n], Start: a.done, Blocks: a.blocks, Adapter: q.Adapter, Lane: -1}
			if q.Labels != nil {
				part.Labels = q.Labels[a.done : a.done+n]
			}
			step, ids = append(step, part), append(ids, a.id)
			a.done += n
			budget -= n
		}
		if len(step) == 0 {
			continue // only empty sequences were left
		}
		if err := run(step, ids); err != nil {
			return err
		}
		kept := running[:0]
		for _, a := range running {
			if a.done < len(seqs[a.id].Tokens) {
				kept = append(kept, a)
			} else {
				free = append(free, a.blocks...)
			}
		}
		running = kept
	}
	return nil
}

// f32Bytes is the memory of values.
func f32Bytes(values []float32) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(values))), 4*len(values))
}

// i32Bytes is the memory of values.
func i32Bytes(values []int32) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(values))), 4*len(values))
}

func u16Bytes(values []uint16) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(values))), 2*len(values))
}
