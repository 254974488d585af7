package infer

import (
	"sync/atomic"
	"time"
)

// masks finds what constraints allow, beside the engine's goroutine. Mostly that takes microseconds and is waited for; where it takes longer, others'
// steps go on, and the sequence has no part in them until its mask is there. Of a tenant one is found at a time: it takes no more than a core with them.
type masks struct {
	lanes    map[string]*lane // by tenant
	patience time.Duration    // that is left in this turn of the loop
	works    int              // that wait for their first masks
}

// lane has a tenant's masks: those that a goroutine finds one after another, and those that it does not know of.
type lane struct{ running, waiting []*masking }

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
	l := e.masks.lanes[m.Tenant]
	if l == nil {
		l = &lane{}
		e.masks.lanes[m.Tenant] = l
	}
	l.waiting = append(l.waiting, m)
}

// takeMasks has the masks found that are wanted by now, and takes over those that are there soon.
func (e *Engine) takeMasks() {
	e.masks.patience = maskPatience
	for _, l := range e.masks.lanes {
		e.startLane(l)
	}
	for tenant, l := range e.masks.lanes {
		for len(l.running) > 0 && e.await(l.running[0]) {
			e.found(l.running[0])
			l.running = l.running[1:]
			e.startLane(l)
		}
		if len(l.running) == 0 {
			delete(e.masks.lanes, tenant)
		}
	}
}

// startLane begins with the masks of a tenant that wait, where those before them are there.
func (e *Engine) startLane(l *lane) {
	if len(l.running) > 0 {
		return
	}
	for _, m := range l.waiting {
		if m.over() {
			e.found(m)
			continue
		}
		l.running = append(l.running, m)
	}
	l.waiting = nil
	if all := l.running; len(all) > 0 {
		vocab := e.run.vocab
		go func() {
			for _, m := range all {
				m.find(vocab, e.Wake)
			}
		}()
	}
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
	select {
	case <-m.done:
		return true
	default:
	}
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
