package infer

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// BesideConfig says how EngineBench.Beside is run. All fields are needed.
type BesideConfig struct {
	Clients int     // that stream, each with its own adapter
	Prompt  int     // tokens
	Tokens  int     // of each text
	Seconds float64 // of each phase
	Targets []time.Duration

	Background Background
	// Rate is the background's tokens a second between two moments.
	Rate func(from, to time.Time) float64
}

// BesideResult is what clients and background work are to each other.
type BesideResult struct {
	Period  time.Duration // between two requests of a client, in all phases
	Alone   float64       // the background's tokens a second without requests
	Without StreamsResult
	With    []StreamsResult // by target
}

// StreamsResult is one phase of EngineBench.Beside.
type StreamsResult struct {
	Requests             int           // begun while it was measured
	Generated            float64       // tokens a second
	FirstP50, FirstP99   time.Duration // to the first token
	TokenP50, TokenP99   time.Duration // of each further token, a text's mean while it was measured
	GapP50, GapP99       time.Duration // from one token to the next, of all
	Target               time.Duration // in force at the end
	Rate                 float64       // of the background, tokens a second
	Busy                 float64       // share of the time in which steps ran
	IdleShare            float64       // what the background got of the time in which none did
	LongestSlice, Median time.Duration // of slices
}

const (
	besideSlack  = 1.5 // a client's period against what its request takes alone with all others
	besideSettle = 0.3 // of a phase, before it is measured
	leastTokens  = 32  // of a text whose mean counts
)

// Beside measures clients that stream at a steady rate without background work, the background work without clients, and both together.
func (b *EngineBench) Beside(ctx context.Context, c BesideConfig) (s BesideResult, err error) {
	for i, target := range c.Targets {
		if err := b.beside(ctx, c, i, target, &s); err != nil {
			return s, err
		}
	}
	return s, nil
}

// beside measures one target with an engine of its own, with the first also what does not depend on it.
func (b *EngineBench) beside(ctx context.Context, c BesideConfig, i int, target time.Duration, s *BesideResult) (err error) {
	r, err := b.start(Config{MaxSeqs: c.Clients, MaxContext: c.Prompt + c.Tokens + 1, TPOTTarget: target}, int64(c.Clients+1)*b.AdapterBytes())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.stop()) }()
	if err := r.bringAll(ctx, 0, c.Clients); err != nil {
		return err
	}
	if i == 0 {
		own, begin := rand.New(rand.NewPCG(1, 13)), time.Now()
		var all errgroup.Group
		for client := range c.Clients {
			random := rand.New(rand.NewPCG(own.Uint64(), 13))
			all.Go(func() error {
				_, err := r.ask(ctx, random, benchTarget(client, b.c.Rank), c.Prompt, c.Tokens)
				return err
			})
		}
		if err := all.Wait(); err != nil {
			return err
		}
		s.Period = time.Duration(besideSlack * float64(time.Since(begin)))
		if s.Without, err = r.phase(ctx, c, s.Period); err != nil {
			return err
		}
	}
	r.e.SetBackground(c.Background)
	defer r.e.SetBackground(nil)
	if i == 0 {
		seconds := time.Duration(c.Seconds * float64(time.Second))
		select {
		case <-time.After(time.Duration(besideSettle * float64(seconds))):
		case <-ctx.Done():
			return ctx.Err()
		}
		from := time.Now()
		select {
		case <-time.After(seconds):
		case <-ctx.Done():
			return ctx.Err()
		}
		s.Alone = c.Rate(from, time.Now())
	}
	with, err := r.phase(ctx, c, s.Period)
	if err != nil {
		return fmt.Errorf("with the target %v: %w", target, err)
	}
	s.With = append(s.With, with)
	return nil
}

// phase lets all clients stream, each beginning a request every period, or when the one before has ended where that is later.
func (r *benchEngine) phase(ctx context.Context, c BesideConfig, period time.Duration) (s StreamsResult, err error) {
	length := time.Duration(c.Seconds * float64(time.Second))
	begin := time.Now()
	from := begin.Add(max(time.Duration(besideSettle*float64(length)), period))
	to := from.Add(max(length, period))
	streaming, halt := context.WithDeadline(ctx, to)
	defer halt()
	var mu sync.Mutex
	var firsts, means, gaps []time.Duration
	note := func(asked time.Time, t timed) {
		mu.Lock()
		defer mu.Unlock()
		if asked.After(from) && t.first > 0 {
			firsts = append(firsts, t.first)
		}
		at := t.shown
		for len(at) > 0 && at[0].Before(from) {
			at = at[1:]
		}
		for i := 1; i < len(at); i++ {
			gaps = append(gaps, at[i].Sub(at[i-1]))
		}
		if n := len(at) - 1; n >= min(leastTokens, c.Tokens-1) {
			means = append(means, at[n].Sub(at[0])/time.Duration(n))
		}
	}
	var all errgroup.Group
	for client := range c.Clients {
		all.Go(func() error {
			random := rand.New(rand.NewPCG(uint64(client), 14))
			for next := begin.Add(period * time.Duration(client) / time.Duration(c.Clients)); ; next = next.Add(period) {
				select {
				case <-time.After(time.Until(next)):
				case <-streaming.Done():
					return ctx.Err()
				}
				asked := time.Now()
				t, err := r.ask(streaming, random, benchTarget(client, r.b.c.Rank), c.Prompt, c.Tokens)
				note(asked, t)
				if err != nil {
					if streaming.Err() != nil {
						return ctx.Err()
					}
					return err
				}
			}
		})
	}
	look := func(at time.Time) (Stats, error) {
		select {
		case <-time.After(time.Until(at)):
			return r.e.Stats(), nil
		case <-ctx.Done():
			return Stats{}, ctx.Err()
		}
	}
	before, err := look(from)
	r.clock.watchSlices()
	after, err2 := look(to)
	slicesTook := r.clock.slices()
	if err = errors.Join(err, err2, all.Wait()); err != nil {
		return s, err
	}
	for _, v := range [][]time.Duration{firsts, means, gaps, slicesTook} {
		slices.Sort(v)
	}
	wall := to.Sub(from)
	steps, beside := after.StepTime-before.StepTime, after.BackgroundTime-before.BackgroundTime
	s = StreamsResult{Requests: len(firsts), Generated: float64(after.GeneratedTokens-before.GeneratedTokens) / wall.Seconds(),
		FirstP50: quantile(firsts, 0.5), FirstP99: quantile(firsts, 0.99), TokenP50: quantile(means, 0.5), TokenP99: quantile(means, 0.99),
		GapP50: quantile(gaps, 0.5), GapP99: quantile(gaps, 0.99), Target: after.TPOTTarget, Rate: c.Rate(from, to),
		Busy: steps.Seconds() / wall.Seconds(), Median: quantile(slicesTook, 0.5), LongestSlice: quantile(slicesTook, 1)}
	if idle := wall - steps; idle > 0 {
		s.IdleShare = beside.Seconds() / idle.Seconds()
	}
	return s, nil
}
