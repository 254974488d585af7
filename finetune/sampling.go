package finetune

import (
	"slices"

	"bhive/infer"
	"bhive/kernels"
)

// maxSampleTokens bounds a sample's prompt and its continuation, each.
const maxSampleTokens = 512

// samplePart is how many tokens a sample draws of each of its prompts in flight, before other lanes that wait have a pass.
const samplePart = 32

// sampling continues prompts greedily between micro-batches, in the memory of passes: none may be under way but where it is set aside.
type sampling struct {
	lane    *Lane
	seqs    []*sampleSeq
	tokens  int // most of a continuation
	layers  int // of the model
	stop    func(id int) bool
	done    func(out [][]int)
	group   []*sampleSeq // in flight
	started int          // sequences taken into groups
	prefill bool         // the group's keys and values are to be computed, from all tokens so far
	steps   int          // since it began or went on
	aside   bool         // a pass of other lanes comes before it goes on

	// Of the step under way.
	inStep bool
	size   int // its tokens
	layer  int
	part   infer.Part // that comes next
}

type sampleSeq struct {
	ids    []int32
	out    []int
	slot   int // adapter slot, or −1
	blocks []int32
	ended  bool
}

// Sample continues prompts greedily by a lane's present B, or with base by the base. done gets the continuations on the goroutine of Unit.
// Prompts keep their last tokens where they are long. A lane that leaves takes its samples along.
func (t *Trainer) Sample(l *Lane, base bool, prompts [][]int, tokens int, stop func(id int) bool, done func(out [][]int)) {
	most := min(maxSampleTokens, t.c.BatchTokens/2, t.m.Positions/2)
	s := &sampling{lane: l, tokens: min(tokens, most), layers: len(t.m.Layers), stop: stop, done: done}
	for _, p := range prompts {
		q := &sampleSeq{slot: l.index}
		if base {
			q.slot = -1
		}
		p = p[max(0, len(p)-most):]
		for _, id := range p {
			q.ids = append(q.ids, int32(id))
		}
		q.ended = len(q.ids) == 0 || s.tokens == 0
		s.seqs = append(s.seqs, q)
	}
	t.samples = append(t.samples, s)
}

// unit runs a unit of the step for the sequences in flight, and reports whether the sample is complete.
func (s *sampling) unit(t *Trainer) bool {
	sc := infer.StepContext{Step: t.serve.step, Cache: t.mem.SampleCache, Table: t.table}
	switch {
	case !s.inStep:
		return s.begin(t, sc)
	case s.layer < s.layers:
		t.m.ForwardPart(t.stream, t.mem.Sample, sc, s.layer, s.part, nil)
		if s.part++; s.part == infer.Parts {
			s.layer, s.part = s.layer+1, 0
		}
	default:
		st := t.mem.Sample
		t.m.Logits(t.stream, st, sc)
		t.m.Backend.Sample(t.stream, st.Sampled[0], st.Logits, kernels.SamplerState{}, sc.Step)
		t.m.Backend.Download(t.stream, int32Bytes(t.drawn), st.Sampled[0].Token)
		s.inStep = false
	}
	return false
}

// begin reads what the last step has drawn, and begins the next; true where there is none.
func (s *sampling) begin(t *Trainer, sc infer.StepContext) bool {
	t.passed()
	if t.err != nil {
		return false
	}
	if s.size > 0 {
		s.take(t.drawn)
	}
	if len(s.group) == 0 && !s.regroup(t) {
		out := make([][]int, len(s.seqs))
		for i, q := range s.seqs {
			out[i] = q.out
		}
		s.done(out)
		return true
	}
	if s.steps == samplePart && t.composes() { // whose pass uses the memory of keys and values
		s.aside, s.prefill, s.steps, s.size = true, true, 0, 0
		return false
	}
	s.steps = min(s.steps, samplePart-1) + 1
	var seqs []infer.StepSeq
	s.size = 0
	for _, q := range s.group {
		e := infer.StepSeq{Blocks: q.blocks, Adapter: q.slot, Lane: -1}
		if s.prefill {
			e.Tokens = slices.Clip(q.ids)
			for _, id := range q.out {
				e.Tokens = append(e.Tokens, int32(id))
			}
		} else {
			e.Tokens, e.Start = []int32{int32(q.out[len(q.out)-1])}, len(q.ids)+len(q.out)-1
		}
		e.Rows = []infer.Row{infer.GreedyRow(len(e.Tokens) - 1)}
		seqs = append(seqs, e)
		s.size += len(e.Tokens)
	}
	s.prefill, s.inStep, s.layer, s.part = false, true, 0, 0
	t.upload(t.serve, seqs)
	t.m.EmbedTokens(t.stream, t.mem.Sample, sc, nil)
	return false
}

// take adds drawn tokens to the sequences in flight.
func (s *sampling) take(drawn []int32) {
	kept := s.group[:0]
	for i, q := range s.group {
		id := int(drawn[i])
		if s.stop(id) {
			continue
		}
		if q.out = append(q.out, id); len(q.out) < s.tokens {
			kept = append(kept, q)
		}
	}
	s.group = kept
}

// regroup takes as many of the remaining sequences as fit.
func (s *sampling) regroup(t *Trainer) bool {
	tokens, block := 0, 0
	for ; s.started < len(s.seqs); s.started++ {
		q := s.seqs[s.started]
		if q.ended {
			continue
		}
		total := len(q.ids) + s.tokens
		if b := t.serve.step.Bucket; len(s.group) == b.Seqs || tokens+total > b.Tokens {
			break
		}
		tokens += total
		q.blocks = t.blocks(&block, total)
		s.group = append(s.group, q)
	}
	s.prefill = true
	return len(s.group) > 0
}
