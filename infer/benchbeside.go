package infer

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"bhive/adapters"

	"golang.org/x/sync/errgroup"
)

// BesideConfig says how EngineBench.Beside is run. All fields are needed.
type BesideConfig struct {
	Clients     int // that stream, each with its own adapter
	Prompt      int // tokens
	Heavy       Arrivals
	Light       Arrivals // that leave the device idle between requests
	Seconds     float64  // of each phase
	Targets     []time.Duration
	Background  Background
	TokensTaken func(from, to time.Time) float64 // a second by the background, between two moments
}

// Arrivals are requests that come by the clock, whether or not the ones before have ended.
type Arrivals struct {
	PerSecond float64 // of all clients together, who take turns
	Tokens    int     // of each text
}

// fits shortens texts to what the clients keep up with when a token takes the target.
func (a Arrivals) fits(clients int, target time.Duration) Arrivals {
	if target > 0 {
		a.Tokens = max(min(a.Tokens, int(besideLoad*float64(clients)/(a.PerSecond*target.Seconds()))), 2)
	}
	return a
}

// at is when a request comes: one in each period, at a moment of its own that is the same in all phases.
func (a Arrivals) at(i int) time.Duration {
	moment := rand.New(rand.NewPCG(uint64(i), 15)).Float64()
	return time.Duration((float64(i) + moment) / a.PerSecond * float64(time.Second))
}

// StreamsResult is one phase of EngineBench.Beside. Of requests that begin while it is measured: TTFT; of those that end too: TPOT.
type StreamsResult struct {
	Arrivals
	Background bool
	Asked      time.Duration // the target, as Config has it

	Requests, Ended      int           // that began; and ended
	Waited               int           // of those that began, for their client's last to end
	Running              float64       // sequences, on average
	Generated            float64       // tokens a second
	FirstP50, FirstP99   time.Duration // to the first token
	TokenP50, TokenP99   time.Duration // of each further token, a text's mean
	GapP50, GapP99       time.Duration // from one token to the next, of all
	Target               time.Duration // in force, on average
	Rate                 float64       // of the background, tokens a second
	Busy                 float64       // share of the time in which steps ran
	IdleShare            float64       // what the background got of the time in which none did
	SlackShare           float64       // and of what the target leaves of all time beside the steps
	LongestSlice, Median time.Duration // of slices
	WaitP50, LongestWait time.Duration // of steps with a prompt, for the background on the device
}

const (
	besideLoad   = 0.9 // of the clients, where texts are cut
	besideSettle = 0.3 // of a phase at most, before it is measured
	besideGrace  = 250 * time.Millisecond
	besideLook   = 20 * time.Millisecond
)

// Beside measures clients that stream without background work, the background work without clients, and both together: at each target, and at
// the first one also lightly loaded.
func (b *EngineBench) Beside(ctx context.Context, c BesideConfig, row func(StreamsResult)) error {
	if c.Clients < 1 || !(c.Heavy.PerSecond > 0) || !(c.Light.PerSecond > 0) {
		return fmt.Errorf("benchmark: %d clients with %v and %v requests a second", c.Clients, c.Heavy.PerSecond, c.Light.PerSecond)
	}
	for i, target := range c.Targets {
		if err := b.beside(ctx, c, i == 0, target, row); err != nil {
			return fmt.Errorf("with the target %v: %w", target, err)
		}
	}
	return nil
}

// beside measures one target with an engine of its own, with the first also what does not depend on it.
func (b *EngineBench) beside(ctx context.Context, c BesideConfig, first bool, target time.Duration, row func(StreamsResult)) (err error) {
	longest := max(c.Heavy.Tokens, c.Light.Tokens)
	r, err := b.start(Config{MaxSeqs: c.Clients, MaxContext: c.Prompt + longest + 1, TPOTTarget: target}, int64(c.Clients+1)*b.AdapterBytes())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.stop()) }()
	if err := r.bringAll(ctx, 0, c.Clients); err != nil {
		return err
	}
	own := func(i int) adapters.Target { return benchTarget(i, b.c.Rank) }
	if err := r.streams(ctx, c.Clients, c.Prompt, min(longest, 16), own); err != nil {
		return err
	}
	phase := func(a Arrivals, background bool) error {
		s, err := r.phase(ctx, c, a)
		if err == nil {
			s.Background, s.Asked = background, target
			row(s)
		}
		return err
	}
	if first {
		for _, a := range []Arrivals{c.Light, c.Heavy} {
			if err := phase(a, false); err != nil {
				return err
			}
		}
	}
	r.e.SetBackground(c.Background)
	defer r.e.SetBackground(nil)
	if first {
		settle := time.Duration(besideSettle * c.Seconds * float64(time.Second))
		from := time.Now().Add(settle)
		to := from.Add(2 * settle)
		if err := until(ctx, to); err != nil {
			return err
		}
		row(StreamsResult{Background: true, Rate: c.TokensTaken(from, to)})
		if err := phase(c.Light, true); err != nil {
			return err
		}
	}
	return phase(c.Heavy.fits(c.Clients, target), true)
}

// until waits for a moment.
func until(ctx context.Context, at time.Time) error {
	select {
	case <-time.After(time.Until(at)):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// streaming is what the clients of a phase see while it is measured.
type streaming struct {
	from, to time.Time

	mu                  sync.Mutex
	begun, ended, waits int
	firsts, means, gaps []time.Duration
}

// note takes note of a request that began at a moment, after waiting or not, and that ended or was cut off.
func (s *streaming) note(asked time.Time, waited, ended bool, t timed) {
	s.mu.Lock()
	defer s.mu.Unlock()
	last := len(t.shown) - 1
	for i := 1; i <= last; i++ {
		if !t.shown[i-1].Before(s.from) && !t.shown[i].After(s.to) {
			s.gaps = append(s.gaps, t.shown[i].Sub(t.shown[i-1]))
		}
	}
	if asked.Before(s.from) || !asked.Before(s.to) {
		return
	}
	s.begun++
	if waited {
		s.waits++
	}
	if t.first == 0 { // it is longer than that
		t.first = time.Since(asked)
	}
	s.firsts = append(s.firsts, t.first)
	if ended && last > 0 && !t.shown[last].After(s.to) {
		s.ended++
		s.means = append(s.means, t.shown[last].Sub(t.shown[0])/time.Duration(last))
	}
}

// phase lets the clients stream.
func (r *benchEngine) phase(ctx context.Context, c BesideConfig, a Arrivals) (s StreamsResult, err error) {
	length, begin := time.Duration(c.Seconds*float64(time.Second)), time.Now()
	from := begin.Add(time.Duration(min(besideSettle*c.Seconds, float64(c.Clients)/a.PerSecond) * float64(time.Second)))
	seen := streaming{from: from, to: from.Add(length)}
	cut, halt := context.WithDeadline(ctx, seen.to.Add(besideGrace))
	defer halt()
	var all errgroup.Group
	for client := range c.Clients {
		all.Go(func() error {
			random := rand.New(rand.NewPCG(uint64(client), 14))
			for i := client; ; i += c.Clients {
				at, free := begin.Add(a.at(i)), time.Now()
				if err := until(cut, at); err != nil || !at.Before(seen.to) {
					return ctx.Err()
				}
				asked := time.Now()
				t, err := r.ask(cut, random, benchTarget(client, r.b.c.Rank), c.Prompt, a.Tokens)
				seen.note(asked, i >= c.Clients && free.After(at), err == nil, t)
				if err != nil {
					if cut.Err() != nil {
						return ctx.Err()
					}
					return err
				}
			}
		})
	}
	err = until(ctx, from)
	before, looks := r.e.Stats(), 0
	r.clock.watchBackground()
	var target time.Duration
	for now := from; err == nil && now.Before(seen.to); looks++ {
		now = now.Add(besideLook)
		err = until(ctx, now)
		at := r.e.Stats()
		s.Running += float64(at.Running)
		target += at.TPOTTarget
	}
	slicesTook, waits := r.clock.background()
	after, to := r.e.Stats(), time.Now()
	if err = errors.Join(err, all.Wait()); err != nil {
		return s, err
	}
	for _, v := range [][]time.Duration{seen.firsts, seen.means, seen.gaps, slicesTook, waits} {
		slices.Sort(v)
	}
	wall := to.Sub(from).Seconds()
	steps, beside := (after.StepTime - before.StepTime).Seconds(), (after.BackgroundTime - before.BackgroundTime).Seconds()
	s = StreamsResult{Arrivals: a, Requests: seen.begun, Ended: seen.ended, Waited: seen.waits, Running: s.Running / float64(max(looks, 1)),
		Generated: float64(after.GeneratedTokens-before.GeneratedTokens) / wall, FirstP50: quantile(seen.firsts, 0.5), FirstP99: quantile(seen.firsts, 0.99),
		TokenP50: quantile(seen.means, 0.5), TokenP99: quantile(seen.means, 0.99), GapP50: quantile(seen.gaps, 0.5), GapP99: quantile(seen.gaps, 0.99),
		Target: target / time.Duration(max(looks, 1)), Rate: c.TokensTaken(from, to), Busy: steps / wall, Median: quantile(slicesTook, 0.5), LongestSlice: quantile(slicesTook, 1),
		WaitP50: quantile(waits, 0.5), LongestWait: quantile(waits, 1)}
	if steps < wall {
		s.IdleShare = beside / (wall - steps)
	}
	if n := after.Steps - before.Steps; n > 0 && s.Target > 0 {
		if left := 1 - steps/float64(n)/s.Target.Seconds(); left > 0 {
			s.SlackShare = beside / (wall * left)
		}
	}
	return s, nil
}
