package infer

import (
	"sync"
	"testing"
	"time"

	"bhive/kernels"
)

// counted is background work on a clock of its own: time passes while its units run, and a little with every look at the clock.
type counted struct {
	mu    sync.Mutex
	now   time.Time
	took  time.Duration // of a unit
	left  int
	units int
	run   func(unit int) // with the number of units before it
	done  chan struct{}
}

func (c *counted) Ready() bool { return true }

func (c *counted) Next() (Unit, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return Unit{Kind: "counted"}, c.left > 0
}

func (c *counted) Enqueue(kernels.Event) kernels.Event {
	if c.run != nil {
		c.run(c.units)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now, c.units = c.now.Add(c.took), c.units+1
	if c.left--; c.left == 0 {
		close(c.done)
	}
	return nil
}

func (c *counted) clock() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(10 * time.Microsecond)
	return c.now
}

// stepped tells of steps.
type stepped struct {
	*counted
	at func(StepInfo)
}

func (s stepped) ObserveStep(i StepInfo)     { s.at(i) }
func (s stepped) ObserveFinish(RequestInfo)  {}
func (s stepped) ObserveSlice(time.Duration) {}

// TestRequestsWaitForOneUnit: a request that arrives while a unit runs, alone or beside others, is in the next step.
func TestRequestsWaitForOneUnit(t *testing.T) {
	b := newRig(t, kernels.F32)
	c := &counted{now: time.Unix(1, 0), took: 3 * time.Millisecond, left: 1 << 30, done: make(chan struct{})}
	var arrived, first []int // units before each request's arrival, and before the step with its prompt
	e, err := New(Config{MaxSeqs: 4, KVBlocks: 128, TPOTTarget: 9 * time.Millisecond, Observer: stepped{c, func(i StepInfo) {
		c.mu.Lock()
		defer c.mu.Unlock()
		if i.PrefillTokens > 0 {
			first = append(first, c.units)
		}
	}}}, b.model, nil, nil, b.tok)
	if err != nil {
		t.Fatal(err)
	}
	e.now = c.clock
	p := greedily(0)
	p.IgnoreEOS = true
	var gens []*Generation
	const requests = 3
	c.run = func(unit int) {
		if len(arrived) < requests && unit == 10*(1+len(arrived)) { // the second and third beside the first
			arrived = append(arrived, unit+1)
			g, err := e.Submit(t.Context(), Request{Prompt: []int{5, 6, 7}, Params: p})
			if err != nil {
				t.Error(err)
			}
			gens = append(gens, g)
		}
		if len(arrived) == requests && unit == 60 {
			c.mu.Lock()
			c.left = 1
			c.mu.Unlock()
		}
	}
	e.SetBackground(c)
	b.runs(t, e, func() {})
	<-c.done
	for _, g := range gens {
		g.Close()
	}
	if err := e.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(first) < requests {
		t.Fatalf("%d steps with a prompt, after %v units", len(first), first)
	}
	for i, n := range arrived {
		if first[i] != n {
			t.Errorf("request %d arrived in unit %d, and %d had run before its step", i, n, first[i])
		}
	}
}

// slow is background work on a device of its own clock, which passes while somebody looks whether a unit has ended.
type slow struct {
	counted
	ends []time.Time // of units
	most int         // that were under way at once
}

// end is a unit's.
type end struct {
	q  *slow
	at time.Time
}

func (e end) Done() bool {
	e.q.mu.Lock()
	defer e.q.mu.Unlock()
	e.q.now = e.q.now.Add(50 * time.Microsecond)
	return !e.q.now.Before(e.at)
}

func (e end) Wait() error { return nil }

func (q *slow) Enqueue(kernels.Event) kernels.Event {
	if q.run != nil {
		q.run(q.units)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	at, under := q.now, 1
	for _, e := range q.ends {
		if e.After(q.now) {
			at, under = e, under+1
		}
	}
	q.ends, q.most, q.units = append(q.ends, at.Add(q.took)), max(q.most, under), q.units+1
	if q.left--; q.left == 0 {
		close(q.done)
	}
	return end{q, at.Add(q.took)}
}

// TestBound: of units of 2 ms no more than two are under way at once where a request may wait 5 ms, alone and beside a request; and two often are.
// It runs on the CPU, whichever device the other tests have: the units' ends are on the test's own clock, and a GPU's stream waits for ends on the GPU only.
func TestBound(t *testing.T) {
	b := newRigOn(t, openCPU(t, kernels.F32))
	q := &slow{counted: counted{now: time.Unix(1, 0), took: 2 * time.Millisecond, left: 1 << 30, done: make(chan struct{})}}
	e, err := New(Config{MaxSeqs: 4, KVBlocks: 128, TPOTTarget: 9 * time.Millisecond, TrainSlice: 5 * time.Millisecond, Overlap: true}, b.model, nil, nil, b.tok)
	if err != nil {
		t.Fatal(err)
	}
	e.now = q.clock
	p := greedily(0)
	p.IgnoreEOS = true
	var g *Generation
	beside := 0
	q.run = func(unit int) {
		if unit == 20 {
			if q.most != 2 {
				t.Errorf("alone, %d units were under way at once", q.most)
			}
			q.most = 0
			if g, err = e.Submit(t.Context(), Request{Prompt: []int{5, 6, 7}, Params: p}); err != nil {
				t.Error(err)
			}
		}
		if len(e.sched.run) > 0 {
			if beside++; beside == 40 {
				q.mu.Lock()
				q.left = 1
				q.mu.Unlock()
			}
		}
	}
	e.SetBackground(q)
	b.runs(t, e, func() {})
	<-q.done
	g.Close()
	if err := e.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if q.most != 2 {
		t.Errorf("beside a request, %d units were under way at once", q.most)
	}
}

// TestWaited: a step says how long the units before it ran since it was enqueued, and not what ran before them; one without units that it did not wait.
func TestWaited(t *testing.T) {
	q := &slow{counted: counted{now: time.Unix(1, 0), took: 2 * time.Millisecond, left: 1 << 30, done: make(chan struct{})}}
	e := &Engine{now: q.clock, besides: besides{sharing: newSharing(0, 5*time.Millisecond)}}
	s := &e.besides
	var behind [2]flight
	for i := range behind {
		s.running = append(s.running, sent{end: q.Enqueue(nil), at: e.now(), predicted: q.took, known: true})
		behind[i].begun = e.now()
		s.await(&behind[i])
	}
	for len(s.running) > 0 {
		e.reap()
	}
	alone := flight{begun: e.now()}
	s.await(&alone)
	e.reap()
	near := func(a, b time.Duration) bool { return (a - b).Abs() < 200*time.Microsecond }
	if first, second := behind[0].waited, behind[1].waited; !near(first, q.took) || !near(second, 2*q.took) {
		t.Errorf("behind one unit a step waited %v, behind two %v", first, second)
	}
	if alone.waited != 0 || len(s.waiting) != 0 {
		t.Errorf("behind none it waited %v; %d are said to wait", alone.waited, len(s.waiting))
	}
	// Before this unit a step runs for half of its time.
	shared := flight{begun: e.now()}
	s.running = append(s.running, sent{end: q.Enqueue(nil), at: e.now(), predicted: q.took, known: true})
	s.await(&shared)
	s.seen = shared.begun.Add(q.took / 2)
	for len(s.running) > 0 {
		e.reap()
	}
	if !near(shared.waited, q.took/2) {
		t.Errorf("behind a step and a unit it waited %v for the unit, which took %v", shared.waited, q.took/2)
	}
	// This unit is seen to run, and the host looks again long after its end.
	late := flight{begun: e.now()}
	s.running = append(s.running, sent{end: q.Enqueue(nil), at: e.now(), predicted: q.took, known: true})
	s.await(&late)
	e.reap()
	q.mu.Lock()
	q.now = q.now.Add(5 * q.took)
	q.mu.Unlock()
	if e.reap(); !near(late.waited, q.took) {
		t.Errorf("looked at late, a step is said to have waited %v for a unit of %v", late.waited, q.took)
	}
}
