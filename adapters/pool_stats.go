package adapters

import "slices"

// PoolStats is a snapshot of a pool.
type PoolStats struct {
	Resident    []string // keys on the device, sorted
	Waiting     []string // keys that a lease waits for, sorted
	Leased      int      // leases outstanding, without the base's
	SlotsUsed   int
	DeviceBytes int64
	HostBytes   int64
	Hits        uint64 // Acquire found it resident
	HostHits    uint64 // Acquire found it in host memory
	Misses      uint64 // Acquire had to wait for the store
	Evictions   uint64 // from the device
	Failures    uint64 // fetches that failed
}

// Stats is a snapshot for metrics.
func (p *Pool) Stats() PoolStats {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := PoolStats{Leased: p.leases, SlotsUsed: p.c.Slots - len(p.freeSlots), DeviceBytes: p.deviceBytes, HostBytes: p.hostBytes,
		Hits: p.hits, HostHits: p.hostHits, Misses: p.misses, Evictions: p.evictions, Failures: p.failures}
	for _, e := range p.entries {
		switch {
		case e.state == stateResident:
			s.Resident = append(s.Resident, e.target.Key())
		case e.leases > 0:
			s.Waiting = append(s.Waiting, e.target.Key())
		}
	}
	slices.Sort(s.Resident)
	slices.Sort(s.Waiting)
	return s
}
