package infer

import (
	"sync/atomic"
	"time"
)

// masks finds what constraints allow, beside the engine's goroutine. Mostly that takes microseconds and is waited for; where it takes longer, others'
// steps go on, and the sequence has no part in them until its mask is there. Of a tenant one is found at a time: it takes no more than a core with them.
type masks struct {
	lanes    map[string][]*masking // by tenant: the first of each is being found
	patience time.Duration         // that is left in this turn of the loop
	works    int                   // that wait for their first masks
}

// masking is a mask that is found, or waits for its turn.
type masking struct {
	*work
	q     *sequence // nil: the work's first masks, of all its choices
	token int       // q's last

	any  bool // something may come
	done chan struct{}
	left atomic.Bool // nobody waits for done
}

// maskPatience is how long a turn of the loop waits for masks, all together.
const maskPatience = 2 * time.Millisecond

// findMasks finds the first masks of a work.
func (e *Engine) findMasks(w *work) {
	e.masks.works++
	e.findMask(&masking{work: w})
}

// advance tells a constraint which token was drawn, and finds what may come next.
func (e *Engine) advance(q *sequence, token int) {
	q.held = true
	e.findMask(&masking{work: q.work, q: q, token: token})
}

func (e *Engine) findMask(m *masking) {
	m.done = make(chan struct{})
	lane := append(e.masks.lanes[m.Tenant], m)
	e.masks.lanes[m.Tenant] = lane
	if len(lane) == 1 {
		e.runLane(m.Tenant)
	}
}

// takeMasks takes over the masks that were found meanwhile.
func (e *Engine) takeMasks() {
	e.masks.patience = maskPatience
	for tenant, lane := range e.masks.lanes {
		select {
		case <-lane[0].done:
			e.found(lane[0])
			e.masks.lanes[tenant] = lane[1:]
			e.runLane(tenant)
		default:
		}
	}
}

// runLane finds a tenant's masks as long as they come soon.
func (e *Engine) runLane(tenant string) {
	for len(e.masks.lanes[tenant]) > 0 {
		m := e.masks.lanes[tenant][0]
		if !m.over() {
			go m.find(e.run.vocab, e.Wake)
			if !e.await(m) {
				return
			}
		}
		e.found(m)
		e.masks.lanes[tenant] = e.masks.lanes[tenant][1:]
	}
	delete(e.masks.lanes, tenant)
}

// over reports whether nobody wants the mask any more.
func (m *masking) over() bool {
	if m.q != nil {
		return m.q.phase == done
	}
	return m.work.left == 0
}

func (m *masking) find(vocab int, wake func()) {
	if m.q == nil {
		m.any = m.constrain(vocab)
	} else {
		m.q.constraint.Accept(m.token)
		m.any = m.q.constrain(vocab)
	}
	close(m.done)
	if m.left.Load() {
		wake()
	}
}

// await waits for a mask as long as there is patience, and reports whether it is there.
func (e *Engine) await(m *masking) bool {
	if e.masks.patience > 0 {
		begin, t := time.Now(), time.NewTimer(e.masks.patience)
		select {
		case <-m.done:
		case <-t.C:
		}
		t.Stop()
		e.masks.patience -= time.Since(begin)
	}
	m.left.Store(true) // before the last look, so that whoever closes done behind it wakes
	select {
	case <-m.done:
		return true
	default:
		return false
	}
}

// found lets a mask's sequence, or work, go on.
func (e *Engine) found(m *masking) {
	if m.q != nil {
		m.q.held = false
		if !m.any {
			e.end(m.q, FinishStop, "")
		}
		return
	}
	e.masks.works--
	switch {
	case m.over():
	case m.any:
		e.sched.queue.aside = append(e.sched.queue.aside, m.work)
	default:
		for _, q := range m.seqs {
			e.end(q, FinishStop, "")
		}
	}
}
