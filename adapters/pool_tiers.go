package adapters

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"
)

// queueFetch puts an entry in line for the store. The caller holds mu, as for all of this file's lower-case methods.
func (p *Pool) queueFetch(e *entry) {
	e.state = stateQueued
	e.queueAt = p.fetchQ.PushBack(e)
	p.startFetches()
}

// queueDevice puts an entry in line for the device.
func (p *Pool) queueDevice(e *entry) {
	e.since = time.Now()
	e.queueAt = p.deviceQ.PushBack(e)
	p.c.Wake()
}

// patience is how long a B waits for a place on the device before another gives way, if all are leased.
const patience = 2 * time.Second

// giveWay ends the leasing of a resident B where another has waited too long for a place: the leases that there are keep it to their end, and who
// asks for it from now on waits behind the other. One at a time gives way.
func (p *Pool) giveWay(e *entry) bool {
	first := p.deviceQ.Front()
	if e.state != stateResident || e.pins > 0 || p.leaving != nil && p.leaving.wanted() || first == nil || time.Since(first.Value.(*entry).since) < p.patience {
		return false
	}
	delete(p.entries, e.key)
	p.leaving, e.forgotten = e, true
	p.released(e)
	return true
}

// startFetches starts what fetchers and host memory allow, in order.
func (p *Pool) startFetches() {
	for !p.closed && p.fetching < p.c.Fetchers && p.fetchQ.Len() > 0 {
		e := p.fetchQ.Front().Value.(*entry)
		if !p.makeHostRoom(e.bytes) {
			return // an upload's end or a release makes room
		}
		p.fetchQ.Remove(e.queueAt)
		e.queueAt = nil
		e.state = stateFetching
		p.hostBytes += e.bytes
		p.fetching++
		p.wg.Add(1)
		go p.fetch(e)
	}
}

// makeHostRoom evicts from host memory until n more bytes fit. What is being uploaded, or is in line for the device, stays.
func (p *Pool) makeHostRoom(n int64) bool {
	for at := p.hostLRU.Front(); at != nil && p.hostBytes+n > p.c.HostBytes; {
		e := at.Value.(*entry)
		at = at.Next()
		if e.state == stateUploading || (e.state == stateHost && e.wanted()) {
			continue
		}
		if e.state == stateHost {
			p.bury(e) // it is nowhere else
		} else {
			p.dropHost(e)
		}
	}
	return p.hostBytes+n <= p.c.HostBytes
}

func (p *Pool) dropHost(e *entry) {
	if e.hostAt != nil {
		p.hostLRU.Remove(e.hostAt)
		p.freeHost(e.host, e.lent)
		e.hostAt, e.host = nil, nil
		p.hostBytes -= e.bytes
	}
}

// allocHost is memory for a packed B, lent by the device where it lends any. The caller need not hold mu.
func (p *Pool) allocHost(n int64) (b []byte, lent bool) {
	if p.mem != nil {
		if b := p.mem.AllocHost(n); b != nil {
			return b, true
		}
	}
	return make([]byte, n), false
}

func (p *Pool) freeHost(b []byte, lent bool) {
	if lent {
		p.mem.FreeHost(b)
	}
}

// fetch reads an entry from the store, mixes and packs it. It runs on its own goroutine.
func (p *Pool) fetch(e *entry) {
	defer p.wg.Done()
	packed, lent := p.allocHost(e.bytes)
	err := p.read(e.target, packed)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fetching--
	kept := false
	defer func() {
		if !kept {
			p.freeHost(packed, lent)
		}
	}()
	switch {
	case p.closed:
		p.hostBytes -= e.bytes
	case err != nil:
		p.failures++
		p.hostBytes -= e.bytes
		p.bury(e)
		e.announce(err) // the next Acquire makes a new entry and tries again
	case e.forgotten && !e.wanted():
		p.hostBytes -= e.bytes
		p.bury(e)
	default:
		kept = true
		e.state, e.host, e.lent = stateHost, packed, lent
		e.hostAt = p.hostLRU.PushBack(e)
		if e.wanted() {
			p.queueDevice(e)
		}
	}
	p.startFetches()
}

// read writes a target's packed B to dst.
func (p *Pool) read(t Target, dst []byte) (err error) {
	if p.c.Load != nil {
		return p.c.Load(p.ctx, t, dst)
	}
	parts, weights := make([]*Weights, len(t.Parts)), make([]float64, len(t.Parts))
	for i, part := range t.Parts {
		if parts[i], _, err = loadVersion(p.ctx, p.blobs, part.Version, p.c.Geometry); err != nil {
			return err
		}
		weights[i] = part.Weight
	}
	w, mixed := parts[0], len(parts) > 1 || weights[0] != 1
	if mixed {
		w = Mix(parts, weights)
	}
	switch whole := w.PackInto(dst, p.c.DType); {
	case !whole && mixed: // the caller's doing
		return fmt.Errorf("loading %s: %w: with these weights it overflows", t.Key(), ErrInvalidName)
	case !whole:
		return fmt.Errorf("loading %s: %w: it overflows the working type", t.Key(), ErrCorrupt)
	}
	return nil
}

// Pump does what must happen between steps: frees what was evicted or forgotten, finishes uploads, sets slots, and
// starts uploads of fetched B's. The engine calls it on its own goroutine before each step. It says whether copies
// are under way, so that an idle engine calls again soon; all else is told by Wake.
func (p *Pool) Pump() (pending bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	under := p.uploads[:0]
	for _, e := range p.uploads {
		if !e.done() {
			under = append(under, e)
			continue
		}
		e.done = nil
		p.dev.SetSlot(e.slot, e.block, e.rank)
		e.state = stateResident
		e.deviceAt = p.devLRU.PushBack(e)
		e.announce(nil)
		p.released(e) // it may have been forgotten, or room be wanted
	}
	clear(p.uploads[len(under):])
	p.uploads = under

	// After the uploads, one of which may just have been for what was forgotten: admit counts on this memory.
	for _, e := range p.freeing {
		p.freeBlock(e)
	}
	p.freeing = p.freeing[:0]

	p.memoryBusy = false
	for p.deviceQ.Len() > 0 && p.admit(p.deviceQ.Front().Value.(*entry)) {
	}
	p.startFetches() // ended uploads let host memory be evicted
	return len(p.uploads) > 0 || p.memoryBusy
}

// admit starts an entry's upload, evicting as needed, or says that there is no room now.
func (p *Pool) admit(e *entry) bool {
	for len(p.freeSlots) == 0 || p.deviceBytes+e.bytes > p.c.DeviceBytes {
		if !p.evictOne() {
			return false
		}
	}
	block, err := p.dev.Alloc(e.bytes)
	for err != nil && !errors.Is(err, ErrMemoryBusy) {
		if !p.evictOne() {
			break
		}
		block, err = p.dev.Alloc(e.bytes)
	}
	if errors.Is(err, ErrMemoryBusy) {
		p.memoryBusy = true
		return false
	}
	if err != nil {
		if p.devLRU.Len() > 0 || len(p.uploads) > 0 {
			return false // leased B's will be released
		}
		p.failures++
		p.bury(e)
		e.announce(fmt.Errorf("loading %s: %w: %w", e.target.Key(), ErrNoMemory, err))
		return true
	}
	p.deviceQ.Remove(e.queueAt)
	e.queueAt = nil
	e.block, e.slot = block, p.freeSlots[len(p.freeSlots)-1]
	p.freeSlots = p.freeSlots[:len(p.freeSlots)-1]
	p.deviceBytes += e.bytes
	e.state = stateUploading
	e.done = p.dev.Upload(block, e.host)
	p.uploads = append(p.uploads, e)
	return true
}

// evictOne frees the least recently used B on the device that nobody holds.
func (p *Pool) evictOne() bool {
	for at := p.devLRU.Front(); at != nil; at = at.Next() {
		e := at.Value.(*entry)
		if e.wanted() {
			continue
		}
		p.devLRU.Remove(at)
		e.deviceAt = nil
		p.freeBlock(e)
		p.evictions++
		if e.host != nil {
			e.state = stateHost
		} else {
			p.bury(e)
		}
		return true
	}
	return false
}

func (p *Pool) freeBlock(e *entry) {
	p.dev.SetSlot(e.slot, nil, 0)
	p.dev.Free(e.block)
	p.freeSlots = append(p.freeSlots, e.slot)
	p.deviceBytes -= e.bytes
	e.block, e.slot = nil, BaseSlot
}

// Close stops fetching, waits for uploads to end and frees everything; outstanding leases fail with ErrClosed. It is
// called on the engine's goroutine, after the last step. Idempotent.
func (p *Pool) Close() error {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil
	}
	p.closed = true
	p.mu.Unlock()
	p.cancel()
	p.wg.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range p.uploads {
		for !e.done() {
			time.Sleep(100 * time.Microsecond)
		}
	}
	p.uploads = nil
	for _, e := range p.freeing {
		p.freeBlock(e)
	}
	p.freeing = nil
	all := slices.Collect(maps.Values(p.entries))
	if p.leaving != nil {
		all = append(all, p.leaving)
	}
	for _, e := range all {
		if e.block != nil {
			p.freeBlock(e)
		}
		if e.state != stateResident {
			e.announce(ErrClosed)
		}
		e.err = ErrClosed
		p.dropHost(e)
		e.state = stateDead
	}
	clear(p.entries)
	return nil
}
