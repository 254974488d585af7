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
// unless the next unit is longer than that: then it is saved up for, and tokens keep to the target in the mean. Steps with prompts are as long
// as they are; what they take beyond the others is owed. Predictions are learned, of units by kind and size and of steps by batch. A margin of
// the earnings is withheld: it grows with every token that is late though the units were to fit, and shrinks so slowly that one of a hundred may be.
//
// The target that follows from a token's time without units is learned from what no unit can have changed: steps with none before them, one in
// aloneEvery at least, and the share of the time that prompts take. That share is of all time, with units, as requests arrive by the clock:
// of the steps' time it would grow with every unit, and the target with it.
type sharing struct {
	target time.Duration // from one token to the next; 0: idleRatio × what it is without units
	bound  time.Duration // the most that units enqueued at once may take, by prediction

	units  map[unitKind]time.Duration
	steps  [64]time.Duration // a step of decodes, by the class of its batch; 0: not known
	alone  [64]time.Duration // the same with no unit before it
	seen   [64]int           // so many of these
	wall   float64           // of the last steps from token to token
	extra  float64           // of that, what prompts added
	since  int               // slices since one without units
	class  int               // of the next step
	credit time.Duration
	earned time.Duration // by the last step
	spent  time.Duration // by prediction since
	need   time.Duration // of the next unit, if it did not fit
	margin float64       // of what a step earns
}

// unitKind is what a unit's time depends on.
type unitKind struct {
	kind string
	size int
}

const (
	// idleRatio is what training may stretch the time from token to token by.
	idleRatio = 1.25

	aloneEvery  = 64  // of so many steps one has no unit before it
	aloneFirst  = 4   // so many tell what a batch takes: the first may be long
	lastSteps   = 256 // that the share of prompts is of
	mostPrompts = 0.75

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
	return time.Duration(idleRatio * s.idle(class))
}

// idle is the time from token to token without units: of a step, and of the prompts that come meanwhile. 0: not known yet.
func (s *sharing) idle(class int) float64 {
	alone := float64(s.alone[class])
	if s.seen[class] < aloneFirst {
		return 0
	}
	return alone / (1 - min(s.extra/max(s.wall, aloneEvery*alone), mostPrompts))
}

// predict is how long a unit will take; false where none like it has ended yet.
func (s *sharing) predict(u Unit) (time.Duration, bool) {
	d, ok := s.units[unitKind{u.Kind, u.Size}]
	return d, ok
}

// earn begins the slice before a step of so many decodes; 0: before one that no token waits for, which earns nothing. It returns what the slice
// before could have spent and the account does not hold.
func (s *sharing) earn(decodes int) (lost time.Duration) {
	if s.since++; s.spent == 0 {
		s.since = 0
	}
	s.earned, s.spent = 0, 0
	if decodes > 0 {
		s.class = classOf(decodes)
		if step, target := s.steps[s.class], s.targetOf(s.class); step > 0 && target > 0 {
			s.earned = time.Duration((1 - s.margin) * float64(target-step))
		}
	}
	most := s.earned
	if s.need > s.earned {
		most = s.need + max(s.earned, 0) // what is left over is the next unit's
	}
	lost = max(s.credit+s.earned-most, 0)
	s.credit = max(s.credit+s.earned-lost, -10*s.bound)
	if s.target == 0 && s.since >= aloneEvery-1 {
		s.credit = min(s.credit, 0)
	}
	return lost
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
	s.credit, s.need = s.credit-predicted, 0
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

// decoded is a step with decodes that has ended.
type decoded struct {
	decodes int
	prompts bool          // it computed prompts too
	took    time.Duration // alone
	gap     time.Duration // since the end of the one before it; 0: that had no tokens
	units   bool          // some ran between the two
	shared  bool          // all of those were to fit
	lost    time.Duration // what they could have taken besides
}

// decoded learns from a step.
func (s *sharing) decoded(d decoded) {
	class := classOf(d.decodes)
	if !d.prompts {
		learn(&s.steps[class], d.took)
		if !d.units {
			learn(&s.alone[class], d.took)
			s.seen[class]++
		}
	}
	if alone := s.alone[class]; alone > 0 && d.gap > 0 {
		s.wall += float64(d.gap) - s.wall/lastSteps
		s.extra -= s.extra / lastSteps
		if d.prompts {
			s.extra += float64(max(d.took-alone, 0))
		}
	}
	target := s.targetOf(class)
	switch {
	case target == 0 || s.steps[class] == 0:
	case d.prompts: // the slice before it was earned for a step without
		s.credit -= max(d.took-s.steps[class]-d.lost, 0)
	case d.shared && d.gap > target:
		s.margin = min(s.margin+lateMargin, mostMargin)
	case d.shared && d.gap > 0:
		s.margin = max(s.margin-lateMargin*lateShare/(1-lateShare), leastMargin)
	}
}

// learn follows the mean of what steps take.
func learn(mean *time.Duration, took time.Duration) {
	if *mean == 0 || took < *mean/2 { // the mean was somebody else's doing
		*mean = took
	} else {
		*mean += (min(took, 2**mean) - *mean) / 8
	}
}

// sum is what units are predicted to take.
func sum(units []sent) (d time.Duration) {
	for _, r := range units {
		d += r.predicted
	}
	return d
}
