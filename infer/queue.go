package infer

import (
	"slices"
	"strings"
)

// queue orders the sequences that wait. Those that were preempted come first, oldest first. Of the others comes next the first of the
// tenant that has been served the fewest tokens; a tenant that begins to ask starts level with those that are asking (Sheng et al.,
// Fairness in Serving Large Language Models, 2024). Sequences whose adapter is not there yet stand aside and are overtaken.
type queue struct {
	resumed []*sequence
	tenants map[string]*share
	aside   []*work
	waiting int   // sequences in lines and resumed
	clock   int64 // what the tenant admitted last had been served
}

// share is a tenant's place in the queue.
type share struct {
	name   string
	line   []*sequence
	served int64
}

func newQueue() *queue { return &queue{tenants: map[string]*share{}} }

// push appends a sequence to its tenant's line, or to the line's front.
func (u *queue) push(q *sequence, front bool) {
	t := u.tenant(q.Tenant)
	if len(t.line) == 0 {
		t.served = max(t.served, u.clock)
	}
	if front {
		t.line = slices.Insert(t.line, 0, q)
	} else {
		t.line = append(t.line, q)
	}
	u.waiting++
}

// again queues a preempted sequence.
func (u *queue) again(q *sequence) {
	u.resumed = append(u.resumed, q)
	slices.SortFunc(u.resumed, func(a, b *sequence) int {
		if a.olderThan(b) {
			return -1
		}
		return 1
	})
	u.waiting++
}

// next is the sequence to be admitted next, or nil. It stays in the queue.
func (u *queue) next() *sequence {
	if len(u.resumed) > 0 {
		if q := u.resumed[0]; q.inflight == 0 {
			return q
		}
		return nil // tokens of it are still to be read; until then nobody takes what it gave back
	}
	var best *share
	for _, t := range u.tenants {
		if len(t.line) > 0 && (best == nil || t.served < best.served || t.served == best.served && before(t, best)) {
			best = t
		}
	}
	if best == nil {
		return nil
	}
	return best.line[0]
}

func before(a, b *share) bool {
	if a.line[0].order != b.line[0].order {
		return a.line[0].order < b.line[0].order
	}
	return strings.Compare(a.name, b.name) < 0
}

// remove takes a sequence out, wherever it waits.
func (u *queue) remove(q *sequence) {
	is := func(o *sequence) bool { return o == q }
	if i := slices.IndexFunc(u.resumed, is); i >= 0 {
		u.resumed = slices.Delete(u.resumed, i, i+1)
		u.waiting--
		return
	}
	if t := u.tenants[q.Tenant]; t != nil {
		if i := slices.IndexFunc(t.line, is); i >= 0 {
			t.line = slices.Delete(t.line, i, i+1)
			u.waiting--
			return
		}
	}
}

// admitted removes the sequence that next gave.
func (u *queue) admitted(q *sequence) {
	u.remove(q)
	u.clock = max(u.clock, u.tenant(q.Tenant).served)
}

// charge notes tokens computed for a tenant.
func (u *queue) charge(tenant string, tokens int) { u.tenant(tenant).served += int64(tokens) }

func (u *queue) tenant(name string) *share {
	t := u.tenants[name]
	if t == nil {
		if len(u.tenants) >= 1024 { // forget those who owe nothing
			for n, t := range u.tenants {
				if len(t.line) == 0 && t.served <= u.clock {
					delete(u.tenants, n)
				}
			}
		}
		t = &share{name: name}
		u.tenants[name] = t
	}
	return t
}
