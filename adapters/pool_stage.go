package adapters

import "strconv"

// staged is a B in the pool's host memory that nobody can name yet, since it is about to be published.
type staged struct {
	p *Pool
	e *entry
}

// stage packs a B into host memory, evicting as a fetch does. It never fails: where there is no room, or the B would be refused when it is
// loaded, what it returns holds nothing. The caller ends it by publish or drop.
func (p *Pool) stage(b *Encoding) staged {
	w := &b.of
	e := p.entryOf(w.Rank)
	e.state = stateHost
	p.mu.Lock()
	ok := !p.closed && w.Geometry == p.c.Geometry && p.c.Load == nil && e.bytes <= p.c.DeviceBytes && p.makeHostRoom(e.bytes)
	if ok {
		p.hostBytes += e.bytes
		p.wg.Add(1)
	}
	p.mu.Unlock()
	if !ok {
		return staged{}
	}
	defer p.wg.Done()
	packed, lent := p.allocHost(e.bytes)
	ok = b.pack(packed, p.c.DType)
	p.mu.Lock()
	defer p.mu.Unlock()
	if !ok || p.closed {
		p.freeHost(packed, lent)
		p.hostBytes -= e.bytes
		p.startFetches()
		return staged{}
	}
	p.stagings++
	e.key = "\x00" + strconv.FormatUint(p.stagings, 10) // no target's
	e.host, e.lent, e.hostAt = packed, lent, p.hostLRU.PushBack(e)
	p.entries[e.key] = e
	p.startFetches() // it can be evicted from now on
	return staged{p, e}
}

// publish gives what was staged its version's name. Whoever leased the version first, or evicted what was staged, has won.
func (s staged) publish(v Version) {
	if s.e == nil {
		return
	}
	p, e := s.p, s.e
	p.mu.Lock()
	defer p.mu.Unlock()
	if e.state == stateDead {
		return
	}
	t := Target{Parts: []TargetPart{{Version: v, Weight: 1}}}
	key := t.content()
	if p.entries[key] != nil || p.c.Check != nil && p.c.Check(v) != nil {
		p.bury(e)
		p.startFetches()
		return
	}
	delete(p.entries, e.key)
	e.key, e.target = key, t
	p.entries[key] = e
	p.touch(e)
}

// drop frees what was staged.
func (s staged) drop() {
	if s.e == nil {
		return
	}
	s.p.mu.Lock()
	defer s.p.mu.Unlock()
	if s.e.state != stateDead {
		s.p.bury(s.e)
		s.p.startFetches()
	}
}
