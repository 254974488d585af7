package infer

import (
	"slices"
	"time"

	"bhive/kernels"
)

// Background is work that shares the device with serving at the lowest priority: training. Its methods are called on the engine's
// goroutine.
type Background interface {
	// Ready reports whether there may be a unit to run. It is asked before every step and must be quick.
	Ready() bool
	// Next describes the unit that Enqueue runs next; false where there is none now.
	Next() (Unit, bool)
	// Enqueue enqueues that unit on a stream of the background's own, behind after where that is not nil, and returns its end: nil where it
	// leaves nothing on the device.
	Enqueue(after kernels.Event) kernels.Event
}

// Unit is a piece of background work that is not cut further.
type Unit struct {
	Kind    string // what it computes
	Size    int    // of how much: units of one kind and size take the same time
	Settled bool   // it begins when all units before it have ended on the device
	Due     bool   // somebody waits for it: it is not held to the time that training may take
}

// besides is the engine's view of its background work.
type besides struct {
	sharing
	running []sent        // enqueued and not seen to have ended, in order
	gone    int           // units seen to have ended, of all
	waiting []*flight     // steps behind units that are not seen to have ended
	after   kernels.Event // the end of the step enqueued last, while no unit stands behind it
	seen    time.Time     // when the device was last seen to have ended something
	slice   int           // what is enqueued now belongs to this slice: between two steps, or about a bound of it where there are none
	token   time.Time     // when the last step was seen to have ended, where it had decodes
	began   int           // the slice whose end is not seen
	took    time.Duration // of it so far

	ready  bool          // there was work when the loop last looked
	looked time.Time     // then
	served time.Duration // steps seen to have ended since
}

// sent is a unit that is enqueued.
type sent struct {
	Unit
	end       kernels.Event
	at        time.Time // when it was enqueued
	predicted time.Duration
	known     bool
	slice     int
	looked    time.Time // when it was last seen not to have ended, with nothing before it
}

// turn is whose turn it is on the device.
type turn uint8

const (
	turnServing turn = iota // the next step's
	turnTaken               // a unit was enqueued; there may be another
	turnHeld                // a unit's, when one before it has ended
)

// share gives background work its turn before the next step is planned.
func (e *Engine) share() turn {
	s := &e.besides
	e.mu.Lock()
	b := e.background
	e.mu.Unlock()
	e.reap()
	ready := b != nil && b.Ready()
	e.accountIdle(ready)
	if !ready {
		return turnServing
	}
	u, ok := b.Next()
	if !ok {
		return turnServing
	}
	serving := e.serving()
	if serving && e.pressing() && !(u.Due && len(s.running) == 0) {
		return turnServing
	}
	if !serving {
		s.credit = 0
	}
	predicted, known := s.predict(u)
	switch s.admit(u, serving, s.running) {
	case turnHeld:
		// A unit of this slice that the host has to see the end of would leave the device without a step.
		if last := len(s.running) - 1; serving && s.running[last].slice == s.slice && (u.Settled || !known || !s.running[last].known) {
			return turnServing
		}
		return turnHeld
	case turnServing:
		return turnServing
	}
	if !serving && (len(s.running) == 0 || s.enqueued(s.slice)+predicted > s.bound) {
		s.slice++
	}
	r := sent{Unit: u, at: e.now(), predicted: predicted, known: known, slice: s.slice}
	if r.end = b.Enqueue(s.after); r.end != nil {
		s.after = nil
	}
	s.running = append(s.running, r)
	e.reap()
	return turnTaken
}

// enqueued is the predicted time of a slice's units that run.
func (s *besides) enqueued(slice int) (d time.Duration) {
	for _, r := range s.running {
		if r.slice == slice {
			d += r.predicted
		}
	}
	return d
}

// serving reports whether a request has, or waits for, a place in a step.
func (e *Engine) serving() bool {
	return len(e.flights) > 0 || len(e.sched.run) > 0 || e.sched.queue.waiting > 0
}

// pressing reports whether the next step has a prompt to compute, which background work does not hold up.
func (e *Engine) pressing() bool {
	return e.sched.queue.waiting > 0 && !e.sched.stuck || e.sched.prefills()
}

// reap takes note of units that have ended, and reports whether there were any.
func (e *Engine) reap() bool {
	s := &e.besides
	n := 0
	for n < len(s.running) && (s.running[n].end == nil || s.running[n].end.Done()) {
		n++
	}
	now := e.now()
	if n < len(s.running) {
		s.running[n].looked = now
	}
	if n == 0 {
		return false
	}
	ended, from, exact := s.running[:n], s.running[0].at, true
	if s.seen.After(from) { // it waited for what was before it
		from, exact = s.seen, !ended[0].looked.IsZero()
	}
	took, predicted := now.Sub(from), sum(ended)
	if !exact && took > predicted { // it may have ended long before it was looked at
		took = predicted
	}
	s.seen = from.Add(took)
	last := s.seen
	if known := from.Add(max(predicted, ended[0].looked.Sub(from))); ended[n-1].known && known.Before(last) { // or before it was looked at again
		last = known
	}
	s.ended(ended, took)
	s.gone += n
	s.waitedFor(from, last)
	e.mu.Lock()
	e.stats.BackgroundTime += took
	e.mu.Unlock()
	if ended[0].slice != s.began {
		e.observeSlice()
		s.began = ended[0].slice
	}
	s.took += took
	s.running = s.running[:copy(s.running, s.running[n:])]
	return true
}

// observeSlice accounts for a slice that is over.
func (e *Engine) observeSlice() {
	s := &e.besides
	if s.took > 0 && e.config.Observer != nil {
		e.config.Observer.ObserveSlice(s.took)
	}
	s.took = 0
}

// hold waits until a unit has ended or somebody calls, or the oldest step has ended: then it is true.
func (e *Engine) hold() bool {
	for !e.reap() {
		if len(e.flights) > 0 && e.flights[0].over() {
			return true
		}
		select {
		case <-e.wake:
			return false
		default:
		}
		if e.meanwhile != nil {
			e.meanwhile()
		}
		time.Sleep(patience)
	}
	return false
}

// beside is what goes on while a step runs beside units.
func (e *Engine) beside() {
	e.reap()
	if e.meanwhile != nil {
		e.meanwhile()
	}
}

// behind makes the next step wait for the units before it.
func (e *Engine) behind(f *flight) {
	s := &e.besides
	s.await(f)
	for i := len(s.running) - 1; i >= 0; i-- {
		if end := s.running[i].end; end != nil {
			e.run.stream.WaitFor(end)
			return
		}
	}
}

// await notes that a step is behind the units that run.
func (s *besides) await(f *flight) {
	if len(s.running) > 0 {
		f.behind = s.gone + len(s.running)
		s.waiting = append(s.waiting, f)
	}
}

// waitedFor adds to the steps that wait what units took that ran from one moment to another and have ended. What a step before them took is not theirs.
func (s *besides) waitedFor(from, to time.Time) {
	for _, f := range s.waiting {
		since := from
		if f.begun.After(since) {
			since = f.begun
		}
		f.waited += max(to.Sub(since), 0)
	}
	for len(s.waiting) > 0 && s.waiting[0].behind <= s.gone {
		s.waiting = slices.Delete(s.waiting, 0, 1)
	}
}

// openSlice begins the slice after a step that was enqueued.
func (e *Engine) openSlice(f *flight) {
	s := &e.besides
	f.units, f.shared = s.spent > 0, s.shared()
	s.slice++
	s.after = f.done
	f.lost = s.earn(f.draws())
}

// stepped learns from a step that has ended.
func (e *Engine) stepped(f *flight) (took time.Duration) {
	s, now := &e.besides, e.now()
	e.reap()
	from := f.begun
	if s.seen.After(from) {
		from = s.seen
	}
	took = max(now.Sub(from), 0)
	if f.decodes == 0 || f.err != nil {
		s.token = time.Time{}
	} else {
		d := decoded{decodes: f.decodes, prompts: f.prefill > 0, took: took, units: f.units, shared: f.shared, lost: f.lost}
		if !s.token.IsZero() {
			d.gap = now.Sub(s.token)
		}
		s.decoded(d)
		s.token = now
	}
	s.seen, s.served = now, s.served+took
	return took
}

// accountIdle adds up the time in which there was background work and no step ran.
func (e *Engine) accountIdle(ready bool) {
	s, now := &e.besides, e.now()
	if s.ready {
		idle := now.Sub(s.looked) - s.served
		e.mu.Lock()
		e.stats.IdleTime += max(idle, 0)
		e.stats.TPOTTarget = s.targetOf(s.class)
		e.mu.Unlock()
		s.served = max(-idle, 0) // of a step that began before
	} else {
		s.served = 0
	}
	s.ready, s.looked = ready, now
}
