package infer

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// simulated is a device on which steps and units take turns, on a clock of its own.
type simulated struct {
	sharing
	random *rand.Rand
	step   time.Duration   // a step of 32 decodes
	units  []time.Duration // that come round in turn
	noise  float64         // of both, either way
	prompt time.Duration   // what one adds to a step
	every  time.Duration   // one arrives, by the clock; 0: never
	quiet  bool            // no units
	next   int
	now    time.Duration
	came   time.Duration   // the last prompt
	gaps   []time.Duration // from the end of a step to that of the next
	served time.Duration   // steps
	beside time.Duration   // units
}

func (s *simulated) about(d time.Duration) time.Duration {
	return time.Duration(float64(d) * (1 + s.noise*(2*s.random.Float64()-1)))
}

// run runs steps with units between them.
func (s *simulated) run(steps int) {
	s.gaps, s.served, s.beside = nil, 0, 0
	for range steps {
		step, gap := s.about(s.step), time.Duration(0)
		prompts := s.every > 0 && s.now >= s.came+s.every
		if prompts {
			s.came += s.every
			step += s.prompt
		} else if !s.quiet {
			gap = s.spend()
		}
		gap += step
		d := decoded{decodes: 32, prompts: prompts, took: step, gap: gap, units: s.spent > 0, shared: s.shared()}
		d.lost = s.earn(32) // when it is enqueued
		s.decoded(d)
		s.gaps, s.served, s.now = append(s.gaps, gap), s.served+step, s.now+gap
	}
	slices.Sort(s.gaps)
}

// spend runs the units that a step leaves time for.
func (s *simulated) spend() (all time.Duration) {
	for {
		i := s.next % len(s.units)
		u := Unit{Kind: fmt.Sprint(i)}
		predicted, known := s.predict(u)
		if s.admit(u, true, nil) != turnTaken {
			return all
		}
		s.next++
		took := s.about(s.units[i])
		s.ended([]sent{{Unit: u, predicted: predicted, known: known}}, took)
		all, s.beside = all+took, s.beside+took
	}
}

// TestSharing: beside steps of 7 ms, the 99th of 100 tokens is not later than the target, and units get most of the time that it leaves.
func TestSharing(t *testing.T) {
	const ms = time.Millisecond
	for _, c := range []struct {
		name   string
		target time.Duration
		units  []time.Duration
		noise  float64
		mean   bool // units are longer than what a step earns: tokens keep to the target in the mean
	}{
		{"short units", 0, []time.Duration{ms / 4, ms / 2, ms / 3, ms / 8}, 0.03, false},
		{"noise", 0, []time.Duration{ms / 4, ms / 2, ms / 3, ms / 8}, 0.08, false},
		{"given target", 20 * ms, []time.Duration{2 * ms, 3 * ms, 3 * ms / 2}, 0.05, false},
		{"long units", 0, []time.Duration{3 * ms, 4 * ms, 2 * ms}, 0.05, true},
		{"very long units", 0, []time.Duration{60 * ms}, 0.05, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := simulated{sharing: newSharing(c.target, 5*ms), random: rand.New(rand.NewPCG(1, 2)), step: 7 * ms, units: c.units, noise: c.noise}
			s.run(1000) // learns
			s.run(10000)
			n := len(s.gaps)
			target := c.target
			if target == 0 {
				target = s.step * 5 / 4
			}
			late, mean := s.gaps[n*99/100], (s.served+s.beside)/time.Duration(n)
			share := float64(s.beside) / float64(time.Duration(n)*(target-s.step))
			if c.mean {
				late = mean
			}
			if late > target+target/100 {
				t.Errorf("%v, the target is %v", late, target)
			}
			if share < 0.6 || share > 1.01 { // what is missing is the noise, the last unit that does not fit, and steps that are to be alone
				t.Errorf("units got %.2f of what the target leaves", share)
			}
			t.Logf("p50 %v, p99 %v, mean %v; %.2f of what the target leaves; margin %.2f", s.gaps[n/2], s.gaps[n*99/100], mean, share, s.margin)
		})
	}
}

// TestSharingFollows: a target that steps alone miss leaves nothing; slower units and steps are learned.
func TestSharingFollows(t *testing.T) {
	const ms = time.Millisecond
	s := simulated{sharing: newSharing(6*ms, 5*ms), random: rand.New(rand.NewPCG(1, 2)), step: 7 * ms, units: []time.Duration{ms / 2}}
	s.run(100)
	if s.beside > 0 {
		t.Errorf("units got %v beside steps that are late without them", s.beside)
	}
	s.step = 4 * ms
	s.run(100)
	s.run(100)
	if s.beside < 100*ms {
		t.Errorf("units got %v after the steps became shorter", s.beside)
	}
	s.units = []time.Duration{3 * ms / 2}
	s.run(100)
	s.run(1000)
	if late := s.gaps[990]; late > 6*ms {
		t.Errorf("units became slower, and a token takes %v", late)
	}
}

// TestTargetOfIdle: the target that is not given is 1.25 × what a token takes on average without units, also where prompts come by the clock and take
// much of the time, and units do not raise it; tokens keep to it in the mean, and units get most of what it leaves.
func TestTargetOfIdle(t *testing.T) {
	const ms = time.Millisecond
	for _, c := range []struct {
		name          string
		prompt, every time.Duration
		noise         float64
		units         []time.Duration
	}{
		{"no prompts", 0, 0, 0.03, []time.Duration{ms / 4, ms / 2, ms / 3}},
		{"some prompts", 43 * ms / 10, 62 * ms, 0.03, []time.Duration{ms / 4, ms / 2, ms / 3}},
		{"prompts half of the time", 25 * ms, 50 * ms, 0.03, []time.Duration{ms / 4, ms / 2, ms / 3}},
		{"long units", 43 * ms / 10, 62 * ms, 0.03, []time.Duration{3 * ms, 4 * ms, 2 * ms}},
	} {
		t.Run(c.name, func(t *testing.T) {
			start := func(quiet bool) *simulated {
				return &simulated{sharing: newSharing(0, 5*ms), random: rand.New(rand.NewPCG(1, 2)), step: 56 * ms / 10, units: c.units, noise: c.noise,
					prompt: c.prompt, every: c.every, quiet: quiet}
			}
			idle := start(true)
			idle.run(20000)
			want := idleRatio * float64(idle.served) / 20000
			s := start(false)
			s.run(2000) // learns
			var targets, served, beside, steps float64
			for range 200 {
				s.run(100)
				targets += float64(s.targetOf(s.class)) / 200
				served, beside, steps = served+float64(s.served), beside+float64(s.beside), steps+100
			}
			if ratio := targets / want; ratio < 0.96 || ratio > 1.04 {
				t.Errorf("the target is %.2f ms, 1.25 × the idle engine's is %.2f ms", targets/1e6, want/1e6)
			}
			mean := (served + beside) / steps
			if mean > 1.01*targets {
				t.Errorf("a token takes %.2f ms, the target is %.2f ms", mean/1e6, targets/1e6)
			}
			if share := beside / (steps*targets - served); share < 0.7 {
				t.Errorf("units got %.2f of what the target leaves", share)
			}
			t.Logf("idle %.2f ms, target %.2f ms, mean %.2f ms; units %.2f of what it leaves", want/idleRatio/1e6, targets/1e6, mean/1e6, beside/(steps*targets-served))
		})
	}
}

// TestPromptsOwe: what a prompt adds to a step is taken from what the slice before it left, and then from the next.
func TestPromptsOwe(t *testing.T) {
	const ms = time.Millisecond
	for _, c := range []struct {
		name              string
		spent, took, owed time.Duration
	}{
		{"before any unit", 0, 9 * ms, 0},
		{"after half of the slice", 10 * ms, 9 * ms, 0},
		{"after most of the slice", 19 * ms, 9 * ms, 3 * ms},
		{"a long one before any unit", 0, 45 * ms, 20 * ms},
	} {
		s := newSharing(25*ms, 5*ms)
		s.margin = 0
		s.decoded(decoded{decodes: 4, took: 5 * ms})
		s.earn(4)
		s.credit -= c.spent
		lost := s.earn(4) // the step with the prompt is enqueued
		s.decoded(decoded{decodes: 4, prompts: true, took: c.took, gap: c.spent + c.took, units: c.spent > 0, lost: lost})
		if want := 20*ms - c.owed; s.credit != want {
			t.Errorf("%s: %v are left for the next slice, want %v", c.name, s.credit, want)
		}
	}
}

// TestTargetFollowsSteps: units between all steps hide nothing: as texts grow, the target grows with what a step takes alone.
func TestTargetFollowsSteps(t *testing.T) {
	const ms = time.Millisecond
	s := simulated{sharing: newSharing(0, 5*ms), random: rand.New(rand.NewPCG(1, 2)), step: 4 * ms, units: []time.Duration{ms / 8}}
	s.run(1000)
	for _, step := range []time.Duration{6 * ms, 5 * ms} {
		s.step = step
		s.run(3000)
		if got, want := s.targetOf(s.class), 5*step/4; got < want*99/100 || got > want*101/100 {
			t.Errorf("steps take %v, and the target is %v", step, got)
		}
	}
	if s.beside == 0 {
		t.Error("there were no units")
	}
}

// TestTargetWaitsForStep: of a batch whose steps nobody has seen alone, the target is not known, and no unit comes before it is.
func TestTargetWaitsForStep(t *testing.T) {
	const ms = time.Millisecond
	s := newSharing(0, 5*ms)
	s.ended([]sent{{Unit: Unit{Kind: "unit"}}}, ms/2)
	steps := []decoded{
		{decodes: 8, took: 50 * ms},                            // the first
		{decodes: 8, took: 5 * ms, gap: 6 * ms, units: true},   // not alone
		{decodes: 8, took: 9 * ms, gap: 9 * ms, prompts: true}, // a prompt
		{decodes: 1, took: 4 * ms, gap: 4 * ms},                // another batch
	}
	for range aloneFirst - 2 {
		steps = append(steps, decoded{decodes: 8, took: 5 * ms, gap: 5 * ms})
	}
	for i, d := range steps {
		s.decoded(d)
		s.earn(8)
		if target := s.targetOf(classOf(8)); target != 0 {
			t.Errorf("after step %d the target is %v", i, target)
		}
		if got := s.admit(Unit{Kind: "unit"}, true, nil); got != turnServing {
			t.Errorf("after step %d: %v", i, got)
		}
	}
	s.decoded(decoded{decodes: 8, took: 5 * ms, gap: 5 * ms})
	s.earn(8)
	if got := s.targetOf(classOf(8)); got > 7*ms {
		t.Errorf("the target is %v", got)
	}
	if got := s.admit(Unit{Kind: "unit"}, true, nil); got != turnTaken {
		t.Errorf("the target is %v and no unit comes", s.targetOf(classOf(8)))
	}
}

// TestAdmit: what may stand behind what.
func TestAdmit(t *testing.T) {
	const ms = time.Millisecond
	s := newSharing(0, 5*ms)
	s.ended([]sent{{Unit: Unit{Kind: "two"}}}, 2*ms)
	s.ended([]sent{{Unit: Unit{Kind: "nine"}}}, 9*ms)
	two := sent{Unit: Unit{Kind: "two"}, predicted: 2 * ms, known: true}
	stranger := sent{Unit: Unit{Kind: "stranger"}}
	for _, c := range []struct {
		name    string
		unit    Unit
		serving bool
		running []sent
		want    turn
	}{
		{"first", two.Unit, false, nil, turnTaken},
		{"second", two.Unit, false, []sent{two}, turnTaken},
		{"over the bound", two.Unit, false, []sent{two, two}, turnHeld},
		{"longer than the bound", Unit{Kind: "nine"}, false, nil, turnTaken},
		{"longer than the bound behind another", Unit{Kind: "nine"}, false, []sent{two}, turnHeld},
		{"stranger", stranger.Unit, false, nil, turnTaken},
		{"stranger behind another", stranger.Unit, false, []sent{two}, turnHeld},
		{"behind a stranger", two.Unit, false, []sent{stranger}, turnHeld},
		{"settled", Unit{Kind: "two", Settled: true}, false, nil, turnTaken},
		{"settled behind another", Unit{Kind: "two", Settled: true}, false, []sent{two}, turnHeld},
		{"without credit", two.Unit, true, nil, turnServing},
		{"stranger without credit", stranger.Unit, true, nil, turnServing},
		{"due without credit", Unit{Kind: "two", Due: true}, true, nil, turnTaken},
	} {
		s.credit = 0
		if got := s.admit(c.unit, c.serving, c.running); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}
