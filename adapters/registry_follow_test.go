package adapters

import (
	"context"
	"sync/atomic"
	"testing"
)

// quietStore is a store whose feed breaks once and then stays silent.
type quietStore struct {
	Store
	watches, gets atomic.Int64
	silent        chan struct{} // closed when the second Watch waits
}

func (s *quietStore) Cursor(context.Context) (string, error) { return "7", nil }

func (s *quietStore) Watch(ctx context.Context, _ string) ([]Change, error) {
	if s.watches.Add(1) == 1 {
		return nil, ErrStoreUnavailable
	}
	close(s.silent)
	<-ctx.Done()
	return nil, ctx.Err()
}

func (s *quietStore) Get(_ context.Context, tenant, name string, _ int) (Version, error) {
	s.gets.Add(1)
	return Version{Tenant: tenant, Name: name, Number: 3}, nil
}

// After an outage in which nothing has changed the store is not asked for what is remembered, without waiting for the next change.
func TestRegistryFollowsAgain(t *testing.T) {
	s := &quietStore{silent: make(chan struct{})}
	r := NewRegistry(s, nil)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	defer func() { cancel(); <-ended }()
	<-s.silent
	r.mu.Lock()
	r.away = r.away.Add(-leaveAlone) // the time for which a store that failed is left alone is over
	r.mu.Unlock()
	for range 5 {
		if _, err := r.Resolve(ctx, "", Ref{Parts: []RefPart{{Name: "a", Weight: 1}}}, false); err != nil {
			t.Fatal(err)
		}
	}
	if n := s.gets.Load(); n != 1 {
		t.Errorf("the store was asked %d times", n)
	}
}

// What is slow about the first version of a rank is done when it is resolved, and not when it is leased: the engine waits for that.
func TestResolveChecks(t *testing.T) {
	s := &quietStore{}
	var p *Pool
	checked := 0
	p, _, _ = newPool(t, PoolConfig{Check: func(v Version) error {
		p.Stats() // it holds no lock
		checked++
		return ErrBasisMismatch
	}})
	r := NewRegistry(s, nil)
	r.StageIn(p)
	if _, err := r.Resolve(t.Context(), "", Ref{Parts: []RefPart{{Name: "a", Weight: 1}, {Name: "b", Weight: 1}}}, false); err != nil || checked != 2 {
		t.Errorf("%d versions were checked, %v", checked, err)
	}
}
