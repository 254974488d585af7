package infer

import (
	"fmt"
	"slices"
	"sync"
	"time"
)

// stepClock notes how far apart the ends of full decode steps are. It is an engine's observer.
type stepClock struct {
	mu     sync.Mutex
	batch  int // sequences of a full step
	last   time.Time
	took   []time.Duration
	beside []time.Duration // slices of background work
	waits  []time.Duration // of steps with a prompt, for background work
}

// watch begins to note steps of a batch.
func (s *stepClock) watch(batch int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.batch, s.last, s.took = batch, time.Time{}, nil
}

// ObserveStep notes the end of a step.
func (s *stepClock) ObserveStep(i StepInfo) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i.PrefillTokens > 0 {
		s.waits = append(s.waits, i.Waited)
	}
	now := time.Now()
	if i.DecodeSeqs != s.batch || i.PrefillTokens > 0 {
		s.last = time.Time{}
		return
	}
	if !s.last.IsZero() {
		s.took = append(s.took, now.Sub(s.last))
	}
	s.last = now
}

// ObserveFinish does nothing.
func (s *stepClock) ObserveFinish(RequestInfo) {}

// noted is how many steps were.
func (s *stepClock) noted() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.took)
}

const fewestSteps = 8 // that steps takes

// ObserveSlice notes a slice.
func (s *stepClock) ObserveSlice(took time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.beside = append(s.beside, took)
}

// watchBackground begins to note slices and waits.
func (s *stepClock) watchBackground() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.beside, s.waits = nil, nil
}

// background are the slices and the waits noted.
func (s *stepClock) background() (took, waits []time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.beside), slices.Clone(s.waits)
}

// steps are the times noted, without the first few, sorted.
func (s *stepClock) steps() ([]time.Duration, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.took) < fewestSteps {
		return nil, fmt.Errorf("benchmark: %d sequences ran together in %d steps only", s.batch, len(s.took))
	}
	took := slices.Clone(s.took[3:])
	slices.Sort(took)
	return took, nil
}

// quantile is of sorted times.
func quantile(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}
