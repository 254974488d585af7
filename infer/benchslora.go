package infer

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// SLoRAConfig says how EngineBench.SLoRA is run.
type SLoRAConfig struct {
	Workload WorkloadConfig // Adapters, CV, Alpha, Popularity, lengths and Seed are read
	MaxSeqs  int
	Seconds  float64 // of the saturated and of the steady phase, each
	Rate     float64 // requests a second of the steady phase; 0: a share of what the saturated phase ended
}

// SLoRAResult is one number of adapters' outcome.
type SLoRAResult struct {
	Adapters   int
	Popularity Popularity

	// Saturated: requests always wait.
	Throughput float64 // tokens generated a second
	Requests   float64 // that ended a second

	// Steady: arrivals at Rate.
	Rate                         float64
	Finished                     int
	FirstP50, FirstP90, FirstP99 time.Duration // to the first token
	TokenP50, TokenP99           time.Duration // of each further token, a request's mean

	DeviceHits, HostHits, StoreHits float64 // shares of all requests of both phases
	KVTokens                        int
	DeviceBytes, HostBytes          int64 // for B's
}

// steadyShare is the steady phase's part of what a saturated engine ends.
const steadyShare = 0.7

// SLoRA runs the workload of S-LoRA. Host memory holds the most popular adapters at the beginning, as far as they fit; the others come from the
// store.
func (b *EngineBench) SLoRA(ctx context.Context, c SLoRAConfig) (s SLoRAResult, err error) {
	w := c.Workload
	s.Adapters, s.Popularity = w.Adapters, w.Popularity
	s.DeviceBytes, s.HostBytes = b.c.DeviceBytes-b.c.DeviceBytes/8, b.c.HostBytes
	r, err := b.start(Config{MaxSeqs: c.MaxSeqs, MaxTokens: min(b.c.MaxTokens, 2048), MaxContext: 2*w.Longest + 1}, s.DeviceBytes)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, r.stop()) }()
	s.KVTokens = r.e.Config().KVBlocks * r.e.Config().BlockTokens
	b.store.limit(0)
	fit := min(w.Adapters, b.device.host.room(b.c.HostBytes, b.AdapterBytes()))
	for at := fit; at > 0; at -= 64 { // the most popular last: they stay on the device
		if err := r.bringAll(ctx, max(at-64, 0), at); err != nil {
			return s, err
		}
	}
	b.store.limit(b.c.StoreBandwidth)
	before := r.pool.Stats()

	// Saturated: a closed loop over the workload's requests.
	w.Requests, w.Rate = 1<<16, 1
	arrivals, err := Workload(w)
	if err != nil {
		return s, err
	}
	loading, halt := context.WithCancel(ctx)
	defer halt()
	var next, ended atomic.Int64
	var loop errgroup.Group
	for i := range 2 * c.MaxSeqs {
		loop.Go(func() error {
			random := rand.New(rand.NewPCG(uint64(i), 11))
			for loading.Err() == nil {
				a := arrivals[int(next.Add(1)-1)%len(arrivals)]
				_, err := r.ask(loading, random, benchTarget(a.Adapter, b.c.Rank), a.Prompt, a.Output)
				if err != nil && loading.Err() == nil {
					halt()
					return err
				}
				ended.Add(1)
			}
			return nil
		})
	}
	wait := func(seconds float64) error {
		select {
		case <-time.After(time.Duration(seconds * float64(time.Second))):
			return nil
		case <-loading.Done():
			return loading.Err()
		}
	}
	settle := min(4, c.Seconds/2)
	err = wait(settle)
	tokens, requests, begin := r.e.Stats().GeneratedTokens, ended.Load(), time.Now()
	err = errors.Join(err, wait(c.Seconds))
	took := time.Since(begin).Seconds()
	s.Throughput, s.Requests = float64(r.e.Stats().GeneratedTokens-tokens)/took, float64(ended.Load()-requests)/took
	halt()
	if e := loop.Wait(); e != nil {
		return s, e
	}
	if err != nil {
		return s, err
	}

	// Steady: an open loop.
	if s.Rate = c.Rate; s.Rate == 0 {
		s.Rate = steadyShare * s.Requests
	}
	if s.Rate <= 0 {
		return s, fmt.Errorf("benchmark: no request ended in %.1f s", took)
	}
	w.Rate, w.Requests = s.Rate, max(1, int(s.Rate*c.Seconds))
	w.Seed++
	if arrivals, err = Workload(w); err != nil {
		return s, err
	}
	var mu sync.Mutex
	var firsts, perToken []time.Duration
	var open errgroup.Group
	begin = time.Now()
	for i, a := range arrivals {
		select {
		case <-time.After(time.Until(begin.Add(a.At))):
		case <-ctx.Done():
			return s, errors.Join(ctx.Err(), open.Wait())
		}
		open.Go(func() error {
			t, err := r.ask(ctx, rand.New(rand.NewPCG(uint64(i), 12)), benchTarget(a.Adapter, b.c.Rank), a.Prompt, a.Output)
			if err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			firsts = append(firsts, t.first)
			if p := t.perToken(); p > 0 {
				perToken = append(perToken, p)
			}
			return nil
		})
	}
	if err := open.Wait(); err != nil {
		return s, err
	}
	slices.Sort(firsts)
	slices.Sort(perToken)
	s.Finished = len(firsts)
	s.FirstP50, s.FirstP90, s.FirstP99 = quantile(firsts, 0.5), quantile(firsts, 0.9), quantile(firsts, 0.99)
	s.TokenP50, s.TokenP99 = quantile(perToken, 0.5), quantile(perToken, 0.99)
	after := r.pool.Stats()
	device, host, store := float64(after.Hits-before.Hits), float64(after.HostHits-before.HostHits), float64(after.Misses-before.Misses)
	if all := device + host + store; all > 0 {
		s.DeviceHits, s.HostHits, s.StoreHits = device/all, host/all, store/all
	}
	return s, nil
}
