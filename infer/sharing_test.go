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
	next   int
	gaps   []time.Duration // from the end of a step to that of the next
	alone  time.Duration   // steps
	beside time.Duration   // units
}

func (s *simulated) about(d time.Duration) time.Duration {
	return time.Duration(float64(d) * (1 + s.noise*(2*s.random.Float64()-1)))
}

// run runs steps with units between them.
func (s *simulated) run(steps int) {
	s.gaps, s.alone, s.beside = nil, 0, 0
	for range steps {
		gap := s.spend()
		step := s.about(s.step)
		gap += step
		s.decoded(32, step, gap, s.shared())
		s.gaps, s.alone = append(s.gaps, gap), s.alone+step
		s.earn(32)
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
			late, mean := s.gaps[n*99/100], (s.alone+s.beside)/time.Duration(n)
			share := float64(s.beside) / float64(time.Duration(n)*(target-s.step))
			if c.mean {
				late = mean
			}
			if late > target+target/100 {
				t.Errorf("%v, the target is %v", late, target)
			}
			if share < 0.65 || share > 1.01 { // what is missing is the noise, and the last unit that does not fit
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
