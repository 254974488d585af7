package finetune

import (
	"math/bits"
	"slices"

	"bhive/infer"
	"bhive/kernels"
)

// Training is cut where a unit of 8,192 tokens of an 8B model takes less than 5 ms on an H100: each layer in three, forward and backward, the losses
// by some hundred tokens, the optimizer by lane, copies to the host by 8 MiB. What a unit does depends on the work alone and never on time, so that results do not.

// Kinds of units, by stage and part of a layer.
var (
	forwardKinds  = [infer.Parts]string{"forward attend", "forward gate and up", "forward down"}
	againKinds    = [infer.Parts]string{"attend again", "gate and up again", "down again"}
	backwardKinds = [infer.Parts]string{"backward attend", "backward gate and up", "backward down"}
	sampleKinds   = [infer.Parts]string{"sample attend", "sample gate and up", "sample down"}
)

// Next describes the unit that Enqueue runs next; false where there is nothing to do.
func (t *Trainer) Next() (infer.Unit, bool) {
	switch {
	case t.err != nil:
		return infer.Unit{}, false
	case t.copying():
		return t.copies[0].next(t), true
	case t.pass != nil:
		return t.pass.next(), true
	case t.sampling():
		return t.samples[0].next(), true
	}
	return infer.Unit{Kind: "compose"}, t.composes()
}

// sampling reports whether the next unit is of the first sample, where none is of a pass.
func (t *Trainer) sampling() bool {
	return len(t.samples) > 0 && !(t.samples[0].aside && t.composes())
}

// composes reports whether a lane has a chunk for the next pass.
func (t *Trainer) composes() bool { return slices.ContainsFunc(t.active, t.trains) }

// trains reports whether a lane goes on with its optimizer steps: not before its samples are through, which are of one state.
func (t *Trainer) trains(l *Lane) bool {
	return l != nil && !l.complete && !slices.ContainsFunc(t.samples, func(s *sampling) bool { return s.lane == l })
}

// next describes the pass's next unit.
func (p *pass) next() infer.Unit {
	u := infer.Unit{Size: bits.Len(uint(p.tokens - 1))}
	switch p.stage {
	case stageForward:
		u.Kind = forwardKinds[p.part]
	case stageHead:
		if u.Kind, u.Size = "losses", 0; p.eval {
			u.Kind = "losses of an evaluation"
		}
	case stageAgain:
		u.Kind = againKinds[p.part]
	case stageBackward:
		u.Kind = backwardKinds[p.part]
	case stageNorm:
		u.Kind, u.Size = "gradient norms", len(p.parts)
	case stageUpdate:
		u.Kind, u.Size = "update", 0
		if i := p.updates(p.at); i < len(p.parts) {
			u.Size = p.parts[i].lane.o.Rank
		}
	case stageFinish:
		u = infer.Unit{Kind: "finish", Settled: true}
	}
	return u
}

// next describes the sample's next unit.
func (s *sampling) next() infer.Unit {
	switch {
	case !s.inStep:
		return infer.Unit{Kind: "sample tokens", Settled: true}
	case s.layer < s.layers:
		return infer.Unit{Kind: sampleKinds[s.part], Size: bits.Len(uint(s.size - 1))}
	}
	return infer.Unit{Kind: "sample draw"}
}

// Enqueue enqueues the unit that Next describes, behind after where that is not nil, and returns its end. A settled unit first waits for those before it.
func (t *Trainer) Enqueue(after kernels.Event) kernels.Event {
	if after != nil {
		t.stream.WaitFor(after)
	}
	switch {
	case t.copying():
		t.copy()
	case t.pass != nil:
		if t.pass.unit(t) {
			t.pass = nil
		}
	case t.sampling():
		if s := t.samples[0]; s.unit(t) {
			t.samples = slices.DeleteFunc(t.samples, func(o *sampling) bool { return o == s })
		}
	default:
		if t.pass = t.compose(); len(t.samples) > 0 {
			t.samples[0].aside = false
		}
	}
	end := t.stream.Record()
	for len(t.ends) > 0 && t.ends[0].Done() {
		t.ends = t.ends[:copy(t.ends, t.ends[1:])]
	}
	t.ends = append(t.ends, end)
	return end
}
