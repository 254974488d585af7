package adapters

import "sync"

// Lease is a claim on a target for the time of a request. Its methods are safe for concurrent use.
type Lease struct {
	pool  *Pool
	entry *entry // nil: the base
	once  sync.Once
}

var always = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

// Ready is closed when the target can be used or has failed; see Err.
func (l *Lease) Ready() <-chan struct{} {
	if l.entry == nil {
		return always
	}
	l.pool.mu.Lock()
	defer l.pool.mu.Unlock()
	return l.entry.ready
}

// Err is why the target could not be loaded; nil before Ready and on success.
func (l *Lease) Err() error {
	if l.entry == nil {
		return nil
	}
	l.pool.mu.Lock()
	defer l.pool.mu.Unlock()
	return l.entry.err
}

// Slot is the adapter slot to use in steps after Ready without Err, the same until Release; BaseSlot for the base.
// It panics before Ready or after a failure.
func (l *Lease) Slot() int {
	if l.entry == nil {
		return BaseSlot
	}
	l.pool.mu.Lock()
	defer l.pool.mu.Unlock()
	if l.entry.state != stateResident {
		panic("adapters: Slot of a lease that is not ready: " + l.entry.target.Key())
	}
	return l.entry.slot
}

// Rank is the rank of the B in the slot; 0 for the base.
func (l *Lease) Rank() int {
	if l.entry == nil {
		return 0
	}
	return l.entry.rank
}

// Key is the target's key.
func (l *Lease) Key() string {
	if l.entry == nil {
		return ""
	}
	return l.entry.target.Key()
}

// Content identifies the target's values, "" the base: what prefix-cache keys hold.
func (l *Lease) Content() string {
	if l.entry == nil {
		return ""
	}
	return l.entry.key
}

// Release ends the lease. Idempotent.
func (l *Lease) Release() {
	l.once.Do(func() {
		if l.entry == nil {
			return
		}
		l.pool.mu.Lock()
		defer l.pool.mu.Unlock()
		l.entry.leases--
		l.pool.leases--
		l.pool.released(l.entry)
	})
}
