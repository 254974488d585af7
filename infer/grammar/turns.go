package grammar

import (
	"context"
	"sync"
)

// turns lets one caller on at a time, tenants in turn: of each, one at most waits beside those of others, in the order in which they came.
type turns struct {
	on chan struct{} // holds who is on

	mu sync.Mutex
	of map[string]*turn // by tenant, while somebody of it is here
}

type turn struct {
	next chan struct{} // holds who of the tenant is on or waits for it
	here int
}

func newTurns() *turns { return &turns{on: make(chan struct{}, 1), of: map[string]*turn{}} }

// take waits for a turn, which lasts until end is called. Its error is ctx's.
func (t *turns) take(ctx context.Context, tenant string) (end func(), err error) {
	t.mu.Lock()
	own := t.of[tenant]
	if own == nil {
		own = &turn{next: make(chan struct{}, 1)}
		t.of[tenant] = own
	}
	own.here++
	t.mu.Unlock()
	leave := func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if own.here--; own.here == 0 {
			delete(t.of, tenant)
		}
	}
	select {
	case own.next <- struct{}{}:
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
	select {
	case t.on <- struct{}{}:
	case <-ctx.Done():
		<-own.next
		leave()
		return nil, ctx.Err()
	}
	return func() {
		<-t.on
		<-own.next
		leave()
	}, nil
}
