package finetune

import (
	"bhive/infer"
	"bhive/kernels"
)

// pass is one micro-batch on its way through the model: forward layer by layer, losses, and, unless it is an evaluation, backward and
// the optimizer's steps of the lanes whose last chunk it holds.
type pass struct {
	eval  bool
	parts []part
	stage stage
	layer int
}

// part is a lane's chunk in a pass: the tokens [from, to).
type part struct {
	lane     *Lane // nil once dropped
	chunk    *Chunk
	from, to int
	labels   int
}

type stage int

const (
	stageForward stage = iota
	stageHead
	stageBackward
	stageUpdate
)

// compose fills a pass with the next chunk of each lane in turn, as far as they fit, and uploads its record.
func (t *Trainer) compose() *pass {
	p := &pass{}
	tokens, seqs := 0, 0
	for i := range t.active {
		l := t.active[(t.turn+i)%len(t.active)]
		if l == nil {
			continue
		}
		c := l.peek()
		if c == nil || len(p.parts) > 0 && (c.Eval != p.eval || tokens+c.Tokens > t.c.BatchTokens || seqs+len(c.Examples) > t.c.Seqs) {
			continue
		}
		p.eval = c.Eval
		p.parts = append(p.parts, part{lane: l, chunk: c, from: tokens, to: tokens + c.Tokens})
		tokens += c.Tokens
		seqs += len(c.Examples)
	}
	if len(p.parts) == 0 {
		return nil
	}
	t.turn = (p.parts[0].lane.index + 1) % len(t.active)
	t.fill(p)
	return p
}

// fill writes and uploads the record of a pass.
func (t *Trainer) fill(p *pass) {
	seqs := t.enqueued[:0]
	block := 0
	for i := range p.parts {
		q := &p.parts[i]
		l := q.lane
		set := l.examples(q.chunk)
		for _, index := range q.chunk.Examples {
			e := set[index]
			s := infer.StepSeq{Tokens: e.IDs, Blocks: t.blocks(&block, len(e.IDs)), Adapter: l.index, Lane: l.index, Labels: e.Labels}
			if p.eval {
				s.Lane = -1
			}
			s.Loss = make([]float32, len(e.IDs))
			for j, label := range e.Labels {
				if label >= 0 {
					s.Loss[j] = l.weight
					q.labels++
				}
			}
			seqs = append(seqs, s)
		}
	}
	t.enqueued = seqs
	t.upload(t.train, seqs)
}

// upload writes a step's record and copies it to the device.
func (t *Trainer) upload(r stepRecord, seqs []infer.StepSeq) {
	infer.FillRecord(r.rec, t.c.BlockTokens, seqs)
	t.m.Backend.Upload(t.stream, r.step.Words, r.rec.Bytes())
}

// blocks takes the KV blocks of n tokens from *next on.
func (t *Trainer) blocks(next *int, n int) []int32 {
	out := make([]int32, ceilDiv(n, t.c.BlockTokens))
	for i := range out {
		out[i] = int32(*next + i)
	}
	*next += len(out)
	return out
}

// drop forgets a lane that leaves while the pass is under way. Its tokens go on to the end unheeded, and without a gradient: its lane of
// the table is empty from now on, or the next one's.
func (p *pass) drop(t *Trainer, l *Lane) {
	for i := range p.parts {
		if p.parts[i].lane == l {
			p.parts[i].lane = nil
		}
	}
	r := t.train.rec
	for s := range r.SegLane[:r.Head[kernels.HeadSegs]] {
		if int(r.SegLane[s]) == l.index {
			r.SegLane[s] = -1
		}
	}
	t.m.Backend.Upload(t.stream, t.train.step.Words, r.Bytes())
}

// unit enqueues the pass's next unit and reports whether it was the last, which is over then.
func (p *pass) unit(t *Trainer) bool {
	defer t.pace()
	sc := infer.StepContext{Step: t.train.step, Cache: t.mem.Cache, Table: t.table}
	st, save, layers := t.mem.State, t.mem.Save, len(t.m.Layers)
	switch p.stage {
	case stageForward:
		if p.layer == 0 {
			t.m.EmbedTokens(t.stream, st, sc, save)
		}
		t.m.Forward(t.stream, st, sc, p.layer, p.layer+1, save)
		if p.layer++; p.layer == layers {
			p.stage = stageHead
		}
	case stageHead:
		t.back.head(t.stream, t.nll, t.train.step, !p.eval)
		p.stage = stageBackward
		if p.eval {
			p.stage = stageUpdate
		}
	case stageBackward:
		p.layer--
		t.m.Recompute(t.stream, st, sc, p.layer, save)
		t.back.layer(t.stream, sc, p.layer)
		if p.layer == 0 {
			p.stage = stageUpdate
		}
	case stageUpdate:
		p.finish(t)
		return true
	}
	return false
}

// finish sums the losses and runs the optimizer for the lanes whose step is complete.
func (p *pass) finish(t *Trainer) {
	be := t.m.Backend
	nll := make([]float32, t.c.BatchTokens)
	be.Download(t.stream, floatBytes(nll), t.nll)
	t.sync()
	if t.err != nil {
		return
	}
	var done []*Lane
	for _, q := range p.parts {
		if q.lane == nil {
			continue
		}
		sum := 0.0
		for i := q.from; i < q.to; i++ {
			if t.train.rec.Label[i] >= 0 {
				sum += float64(nll[i])
			}
		}
		last := q.chunk.Last
		q.lane.add(sum, q.to-q.from, q.labels)
		if last {
			done = append(done, q.lane)
		}
	}
	if len(done) == 0 {
		return
	}
	if p.eval {
		for _, l := range done {
			l.finishEval()
		}
		return
	}
	for _, l := range done {
		for _, f := range l.frozen {
			be.Zero(t.stream, l.grad.ColRange(f[0], f[1]))
		}
	}
	be.GradNorm(t.stream, t.norms, t.lanes)
	for _, l := range done {
		l.update(t.norms, t.sites)
	}
	norms := t.downloadFloats(t.norms)
	if t.err != nil {
		return
	}
	for _, l := range done {
		l.finishStep(norms[l.index])
	}
}
