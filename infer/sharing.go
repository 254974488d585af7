package infer

import (
	"math/bits"
	"time"
)

// sharing says how much background work goes between two steps of serving, so that the time from one token to the next stays under a target
// in 99 of 100 steps. It reads no clock.
//
// A step that decodes earns what the target leaves beside the step itself, and units spend what they are predicted to take; what they
// really took settles the account. It holds no more than one step's earnings, so that no token is late because the ones before it were early,
// unless the next unit is longer than that: then it is saved up for, and tokens keep to the target in the mean. Predictions are learned, of
// units by kind and size and of steps by batch. A margin of the earnings is withheld: it grows with every token that is late though the units
// were to fit, and shrinks so slowly that one of a hundred may be.
type sharing struct {
	target time.Duration // from one token to the next; 0: idleRatio × a step alone
	bound  time.Duration // the most that units enqueued at once may take, by prediction

	units  map[unitKind]time.Duration
	steps  [64]time.Duration // a step alone, by the class of its batch; 0: not known
	class  int               // of the last step
	credit time.Duration
	earned time.Duration // by the last step
	spent  time.Duration // by prediction since
	need   time.Duration // of a unit that did not fit
	margin float64       // of what a step earns
}

// unitKind is what a unit's time depends on.
type unitKind struct {
	kind string
	size int
}

const (
	// idleRatio is the time from token to token that training may stretch a step to.
	idleRatio = 1.25

	firstMargin = 0.05
	leastMargin = -0.25 // units seldom fill what is earned to the brim
	mostMargin  = 0.75
	lateMargin  = 0.02 // a late token adds so much to the margin
	lateShare   = 0.01 // of tokens that may be late
)

func newSharing(target, bound time.Duration) sharing {
	return sharing{target: target, bound: bound, units: map[unitKind]time.Duration{}, margin: firstMargin}
}

// classOf is the class of a batch: the graph that it runs.
func classOf(decodes int) int { return bits.Len(uint(max(decodes-1, 0))) }

// targetOf is the target in force for a class; 0: not known yet.
func (s *sharing) targetOf(class int) time.Duration {
	if s.target > 0 {
		return s.target
	}
	return time.Duration(idleRatio * float64(s.steps[class]))
}

// predict is how long a unit will take; false where none like it has ended yet.
func (s *sharing) predict(u Unit) (time.Duration, bool) {
	d, ok := s.units[unitKind{u.Kind, u.Size}]
	return d, ok
}

// earn begins the slice after a step with so many decodes; 0: a step with a prompt in it, after which nothing is earned.
func (s *sharing) earn(decodes int) {
	s.earned, s.spent = 0, 0
	if decodes > 0 {
		s.class = classOf(decodes)
		if step := s.steps[s.class]; step > 0 {
			s.earned = time.Duration((1 - s.margin) * float64(s.targetOf(s.class)-step))
		}
	}
	s.credit = max(min(s.credit+s.earned, max(s.earned, s.need)), -10*s.bound)
	s.need = 0
}

// admit says whether a unit may be enqueued behind those that run: turnTaken, turnHeld until one of them has ended, or turnServing.
func (s *sharing) admit(u Unit, serving bool, running []sent) turn {
	predicted, known := s.predict(u)
	if serving && !u.Due && (s.credit <= 0 || predicted > s.credit) {
		s.need = predicted
		if known && predicted > s.earned { // it is saved up for; if it looked long by accident, not for ever
			s.units[unitKind{u.Kind, u.Size}] -= predicted / 128
		}
		return turnServing
	}
	if n := len(running); n > 0 && (u.Settled || !known || !running[n-1].known || sum(running)+predicted > s.bound) {
		return turnHeld
	}
	s.credit -= predicted
	s.spent += max(predicted, 1)
	return turnTaken
}

// shared reports whether units run in the slice that fit what its step earned.
func (s *sharing) shared() bool { return s.spent > 0 && s.spent <= s.earned }

// ended learns how long units took together.
func (s *sharing) ended(units []sent, took time.Duration) {
	predicted := sum(units)
	s.credit += predicted - took
	unknown := 0
	for _, r := range units {
		if !r.known {
			unknown++
		}
	}
	for _, r := range units {
		k := unitKind{r.Kind, r.Size}
		switch {
		case !r.known:
			s.units[k] = max(took-predicted, 0) / time.Duration(unknown)
		case unknown == 0 && predicted > 0:
			ratio := min(float64(took)/float64(predicted), 4) // more is somebody else's doing
			s.units[k] = max(time.Duration(float64(s.units[k])*(1+(ratio-1)/4)), 1)
		}
	}
}

// decoded learns from a step of that many decodes: how long it took, and the time since the one before it (0: that was no such step); shared: units
// ran between the two that were to fit.
func (s *sharing) decoded(decodes int, took, gap time.Duration, shared bool) {
	class := classOf(decodes)
	if mean := s.steps[class]; mean == 0 {
		s.steps[class] = took
	} else {
		s.steps[class] += (min(took, 2*mean) - mean) / 8
	}
	if target := s.targetOf(class); shared && gap > 0 {
		if gap > target {
			s.margin = min(s.margin+lateMargin, mostMargin)
		} else {
			s.margin = max(s.margin-lateMargin*lateShare/(1-lateShare), leastMargin)
		}
	}
}

// sum is what units are predicted to take.
func sum(units []sent) (d time.Duration) {
	for _, r := range units {
		d += r.predicted
	}
	return d
}
