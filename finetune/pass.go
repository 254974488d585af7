package finetune

import (
	"bhive/infer"
	"bhive/kernels"
)

// pass is one micro-batch on its way through the model: forward, losses, and, unless it is an evaluation, backward and the optimizer's steps of the
// lanes whose last chunk it holds.
type pass struct {
	eval   bool
	parts  []part
	tokens int

	stage stage
	layer int
	part  infer.Part // of the layer
	at    int        // the token whose loss comes next; the part whose lane is updated next
}

// part is a lane's chunk in a pass: the tokens [from, to).
type part struct {
	lane     *Lane // nil once dropped
	chunk    *Chunk
	from, to int
	labels   int
}

// stage is what a pass does next.
type stage int

const (
	stageForward  stage = iota // a part of a layer
	stageHead                  // losses of some tokens
	stageAgain                 // a part of a layer whose results the memory plan does not keep
	stageBackward              // a part of a layer
	stageNorm                  // gradient norms
	stageUpdate                // a lane's optimizer
	stageFinish                // the host reads losses and norms
)

// compose fills a pass with the next chunk of each lane in turn, as far as they fit, and uploads its record.
func (t *Trainer) compose() *pass {
	p := &pass{}
	tokens, seqs := 0, 0
	for i := range t.active {
		l := t.active[(t.turn+i)%len(t.active)]
		if !t.trains(l) {
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
	p.tokens = tokens
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

// unit enqueues the pass's next unit and reports whether it was the last.
func (p *pass) unit(t *Trainer) bool {
	be, sc := t.m.Backend, infer.StepContext{Step: t.train.step, Cache: t.mem.Cache, Table: t.table}
	st, save, layers := t.mem.State, t.mem.Save, len(t.m.Layers)
	switch p.stage {
	case stageForward:
		if p.layer == 0 && p.part == 0 {
			t.m.EmbedTokens(t.stream, st, sc, save)
		}
		t.m.ForwardPart(t.stream, st, sc, p.layer, p.part, save)
		if p.part++; p.part == infer.Parts {
			p.layer, p.part = p.layer+1, 0
		}
		if p.layer == layers {
			p.stage = stageHead
		}
	case stageHead:
		to := min(p.at+t.headTokens, t.c.BatchTokens) // whatever the pass holds, products have few shapes
		t.back.head(t.stream, t.nll, p.at, to, t.train.step, !p.eval)
		if p.at = to; to < p.tokens {
			break
		}
		be.Download(t.stream, floatBytes(t.losses), t.nll)
		if p.stage = stageFinish; !p.eval {
			t.back.start(t.stream, t.train.step)
			p.enter(t, layers-1)
		}
	case stageAgain:
		t.m.Recompute(t.stream, st, sc, p.layer, p.part, save)
		p.part++
		p.again(t)
	case stageBackward:
		t.back.layer(t.stream, sc, p.layer, p.part)
		switch {
		case p.part > 0:
			p.part--
		case p.layer > 0:
			p.enter(t, p.layer-1)
		default:
			if p.stage = stageFinish; p.updates(0) < len(p.parts) {
				p.stage = stageNorm
			}
		}
	case stageNorm:
		for i := p.updates(0); i < len(p.parts); i = p.updates(i + 1) {
			for _, f := range p.parts[i].lane.frozen {
				be.Zero(t.stream, p.parts[i].lane.grad.ColRange(f[0], f[1]))
			}
		}
		be.GradNorm(t.stream, t.norms, t.lanes)
		be.Download(t.stream, floatBytes(t.squares), t.norms)
		p.stage, p.at = stageUpdate, 0
	case stageUpdate:
		if p.at = p.updates(p.at); p.at < len(p.parts) {
			p.parts[p.at].lane.update(t.norms, t.sites)
			p.at++
		}
		if p.updates(p.at) == len(p.parts) {
			p.stage = stageFinish
		}
	case stageFinish:
		p.finish(t)
		return true
	}
	return false
}

// enter goes on to a layer's backward.
func (p *pass) enter(t *Trainer, layer int) {
	p.stage, p.layer, p.part = stageAgain, layer, 0
	p.again(t)
}

// again goes on to the next part that is computed again, or to the backward.
func (p *pass) again(t *Trainer) {
	for ; p.part < infer.Parts; p.part++ {
		if t.mem.Save.Plan.Recomputes(p.part) {
			return
		}
	}
	p.stage, p.part = stageBackward, infer.Parts-1
}

// updates is the first part from i on whose lane's optimizer step is complete.
func (p *pass) updates(i int) int {
	for i < len(p.parts) && (p.parts[i].lane == nil || !p.parts[i].chunk.Last) {
		i++
	}
	return i
}

// updating reports whether lanes stand between two states: their B's are updated, and nobody has taken note.
func (p *pass) updating() bool { return !p.eval && p.stage >= stageUpdate }

// finish takes note of what the device has computed.
func (p *pass) finish(t *Trainer) {
	t.passed()
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
				sum += float64(t.losses[i])
			}
		}
		last := q.chunk.Last
		q.lane.add(sum, q.to-q.from, q.labels)
		if last {
			done = append(done, q.lane)
		}
	}
	for _, l := range done {
		if p.eval {
			l.finishEval()
		} else {
			l.finishStep(t.squares[l.index])
		}
	}
}
