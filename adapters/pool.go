package adapters

import (
	"container/list"
	"context"
	"fmt"
	"sync"
	"time"
)

// PoolConfig sizes a pool.
type PoolConfig struct {
	Geometry    Geometry
	DType       DType  // working type of B on the device; default: BF16
	Slots       int    // entries of the device's slot table, 0 … Slots−1; default: 256
	DeviceBytes int64  // budget for B's on the device, bytes; default: 1 GiB
	HostBytes   int64  // budget for B's in host memory, bytes; default: 4 GiB
	Fetchers    int    // fetches from the store at once; default: 4
	Wake        func() // called, from any goroutine, when Pump has something to do; it must not wait or call the pool; may be nil

	// Check, where set, decides whether a version may be loaded; usually CheckVersion of the basis in use.
	Check func(Version) error
	// Load, where set, writes a target's packed B to dst in place of the store: made-up B's of benchmarks.
	Load func(ctx context.Context, t Target, dst []byte) error
}

// Validate says which field is wrong.
func (c PoolConfig) Validate() error {
	if err := c.Geometry.Validate(); err != nil {
		return fmt.Errorf("pool: %w", err)
	}
	switch {
	case c.DType != BF16 && c.DType != F32:
		return fmt.Errorf("pool: DType %d is neither BF16 nor F32", c.DType)
	case c.Slots < 1:
		return fmt.Errorf("pool: Slots = %d, must be at least 1", c.Slots)
	case c.DeviceBytes < 1:
		return fmt.Errorf("pool: DeviceBytes = %d, must be positive", c.DeviceBytes)
	case c.HostBytes < 1:
		return fmt.Errorf("pool: HostBytes = %d, must be positive", c.HostBytes)
	case c.Fetchers < 1:
		return fmt.Errorf("pool: Fetchers = %d, must be at least 1", c.Fetchers)
	}
	return nil
}

// Pool keeps B's in three tiers: device slots, host memory, store. doc.go tells the life of an entry. All methods
// but Pump and Close are safe for concurrent use and never wait for the store or the device.
type Pool struct {
	c     PoolConfig
	blobs BlobOpener
	dev   Device
	mem   HostMemory // nil: host memory is Go's

	ctx    context.Context // of the fetches; ended by Close
	cancel context.CancelFunc
	wg     sync.WaitGroup // fetches under way

	mu      sync.Mutex
	closed  bool
	entries map[string]*entry
	fetchQ  *list.List // *entry in stateQueued, oldest request first
	deviceQ *list.List // *entry in stateHost that a lease or pin wants on the device, oldest first
	hostLRU *list.List // *entry with host bytes, least recently used first
	devLRU  *list.List // *entry in stateResident, least recently used first

	uploads     []*entry // in stateUploading
	memoryBusy  bool     // the front of deviceQ waits for memory that was freed
	freeing     []*entry // forgotten while resident: Pump frees them
	leaving     *entry   // the last that gave way, not in entries
	patience    time.Duration
	freeSlots   []int // a stack
	fetching    int
	hostBytes   int64 // of data held or reserved by fetches
	deviceBytes int64
	leases      int
	stagings    uint64 // B's ever staged

	hits, hostHits, misses, evictions, failures uint64
}

type state int

const (
	stateQueued    state = iota // waits for a fetcher or for host memory
	stateFetching               // a goroutine reads it; host bytes are reserved
	stateHost                   // in host memory only
	stateUploading              // has block and slot; the copy is under way
	stateResident               // usable
	stateDead                   // failed, forgotten or closed: in no list and not in entries
)

// entry is one target in the pool.
type entry struct {
	key    string // the target's content
	target Target
	rank   int
	bytes  int64

	state     state
	leases    int
	pins      int
	forgotten bool // goes away when nobody holds it

	host  []byte // packed B; nil when evicted from the host
	lent  bool   // host is HostMemory's
	block Block
	slot  int
	done  func() bool // of the upload

	ready    chan struct{} // closed when resident or failed
	isReady  bool
	err      error
	queueAt  *list.Element // in fetchQ or deviceQ
	since    time.Time     // in deviceQ
	hostAt   *list.Element
	deviceAt *list.Element
}

func (e *entry) wanted() bool { return e.leases > 0 || e.pins > 0 }

// NewPool makes a pool; Close gives everything back.
func NewPool(c PoolConfig, blobs BlobOpener, d Device) (*Pool, error) {
	if c.Slots == 0 {
		c.Slots = 256
	}
	if c.DeviceBytes == 0 {
		c.DeviceBytes = 1 << 30
	}
	if c.HostBytes == 0 {
		c.HostBytes = 4 << 30
	}
	if c.Fetchers == 0 {
		c.Fetchers = 4
	}
	if c.Wake == nil {
		c.Wake = func() {}
	}
	if err := c.Validate(); err != nil {
		return nil, err
	}
	p := &Pool{c: c, blobs: blobs, dev: d, entries: map[string]*entry{},
		fetchQ: list.New(), deviceQ: list.New(), hostLRU: list.New(), devLRU: list.New()}
	for slot := c.Slots - 1; slot >= 0; slot-- {
		p.freeSlots = append(p.freeSlots, slot)
	}
	p.patience = patience
	p.mem, _ = d.(HostMemory)
	p.ctx, p.cancel = context.WithCancel(context.Background())
	return p, nil
}

// CheckVersion is the usual PoolConfig.Check: the version's base must be the basis' (ErrBaseMismatch), its rank at
// most R (ErrRank), and its digest that of the basis' rows (ErrBasisMismatch).
func CheckVersion(b *Basis) func(Version) error {
	return func(v Version) error {
		switch {
		case v.BaseHash != b.BaseHash:
			return fmt.Errorf("%s: %w", v.Ref(), ErrBaseMismatch)
		case v.Rank < 1 || v.Rank > b.R:
			return fmt.Errorf("%s: %w: %d, the basis has %d rows", v.Ref(), ErrRank, v.Rank, b.R)
		case v.BasisDigest != b.RowsDigest(v.Rank):
			return fmt.Errorf("%s: %w", v.Ref(), ErrBasisMismatch)
		}
		return nil
	}
}

// prepare asks Check of a version, so that it answers at once when Acquire asks it, under locks that the engine's steps wait for: for the first version
// of a rank CheckVersion hashes that many rows of the basis.
func (p *Pool) prepare(v Version) {
	if p.c.Check != nil {
		_ = p.c.Check(v) // Acquire tells
	}
}

// Acquire leases a target. It never waits: a resident target (and the base) is ready at once; another one is
// fetched in the background, and Ready tells when. Every lease must be released. Errors: ErrClosed, ErrNoMemory
// (larger than a whole budget), ErrRank, or Check's.
func (p *Pool) Acquire(t Target) (*Lease, error) {
	if t.Base() {
		return &Lease{pool: p}, nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	e, err := p.enter(t, true)
	if err != nil {
		return nil, fmt.Errorf("leasing %s: %w", t.Key(), err)
	}
	e.leases++
	p.leases++
	p.touch(e)
	return &Lease{pool: p, entry: e}, nil
}

// enter finds or makes the target's entry and sees to it that it is on its way to the device.
func (p *Pool) enter(t Target, count bool) (*entry, error) {
	if p.closed {
		return nil, ErrClosed
	}
	key := t.content()
	e := p.entries[key]
	if e == nil || p.giveWay(e) {
		var err error
		if e, err = p.newEntry(key, t); err != nil {
			return nil, err
		}
		p.entries[key] = e
		p.queueFetch(e)
		if count {
			p.misses++
		}
		return e, nil
	}
	switch e.state {
	case stateHost:
		if e.queueAt == nil {
			p.renew(e)
			p.queueDevice(e)
		}
		if count {
			p.hostHits++
		}
	case stateResident:
		if count {
			p.hits++
		}
	default:
		if count {
			p.misses++
		}
	}
	return e, nil
}

func (p *Pool) newEntry(key string, t Target) (*entry, error) {
	if len(t.Parts) > MaxMix {
		return nil, fmt.Errorf("%w: a mix of %d adapters, at most %d are allowed", ErrInvalidName, len(t.Parts), MaxMix)
	}
	rank := 0
	for _, part := range t.Parts {
		v := part.Version
		if p.c.Check != nil {
			if err := p.c.Check(v); err != nil {
				return nil, err
			}
		}
		if v.Rank < 1 || v.Rank > MaxRank {
			return nil, fmt.Errorf("%s: %w: %d", v.Ref(), ErrRank, v.Rank)
		}
		rank = max(rank, v.Rank)
	}
	e := p.entryOf(rank)
	e.key, e.target = key, t
	if e.bytes > p.c.DeviceBytes || e.bytes > p.c.HostBytes {
		return nil, fmt.Errorf("%w: it takes %d bytes, the pool may hold %d on the device and %d on the host",
			ErrNoMemory, e.bytes, p.c.DeviceBytes, p.c.HostBytes)
	}
	return e, nil
}

// entryOf is an entry of that rank that is nowhere yet.
func (p *Pool) entryOf(rank int) *entry {
	return &entry{rank: rank, slot: BaseSlot, ready: make(chan struct{}), bytes: int64(rank) * int64(p.c.Geometry.OutTotal()) * int64(p.c.DType.Size())}
}

// renew gives an entry that left the device a new ready channel.
func (p *Pool) renew(e *entry) {
	if e.isReady {
		e.ready, e.isReady = make(chan struct{}), false
	}
}

func (e *entry) announce(err error) {
	e.err = err
	if !e.isReady {
		e.isReady = true
		close(e.ready)
	}
}

// touch makes an entry the most recently used in the tiers that it is in.
func (p *Pool) touch(e *entry) {
	if e.hostAt != nil {
		p.hostLRU.MoveToBack(e.hostAt)
	}
	if e.deviceAt != nil {
		p.devLRU.MoveToBack(e.deviceAt)
	}
}

// Pin keeps a target resident: it is fetched now and not evicted until Unpin. Pins are counted. Errors are Acquire's;
// the base needs no pin.
func (p *Pool) Pin(t Target) error {
	if t.Base() {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	e, err := p.enter(t, false)
	if err != nil {
		return fmt.Errorf("pinning %s: %w", t.Key(), err)
	}
	e.pins++
	return nil
}

// Unpin undoes one Pin. A pin whose fetch failed is gone already.
func (p *Pool) Unpin(t Target) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e := p.entries[t.content()]; e != nil && e.pins > 0 {
		e.pins--
		p.released(e)
	}
}

// Forget drops what no lease holds of a deleted version (number 0: of all versions of the name), also mixes with
// it, and the rest at its last release. Pins on it end.
func (p *Pool) Forget(tenant, name string, number int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range p.entries {
		for _, part := range e.target.Parts {
			if v := part.Version; v.Tenant == tenant && v.Name == name && (number == 0 || v.Number == number) {
				e.forgotten, e.pins = true, 0
				p.released(e)
				break
			}
		}
	}
}

// released sees what follows from an entry having lost a lease or pin.
func (p *Pool) released(e *entry) {
	if e.wanted() || e.state == stateDead {
		return
	}
	if e.queueAt != nil && e.state == stateHost { // nobody wants it on the device any more
		p.deviceQ.Remove(e.queueAt)
		e.queueAt = nil
	}
	if e.forgotten || e.state == stateQueued { // a fetch that has not begun would only keep others from theirs
		switch e.state {
		case stateResident:
			p.devLRU.Remove(e.deviceAt)
			e.deviceAt = nil
			p.freeing = append(p.freeing, e)
			p.bury(e)
		case stateQueued, stateHost:
			p.bury(e)
		case stateFetching, stateUploading: // at their end
		}
	}
	// Its bytes may be what others wait for.
	if p.deviceQ.Len() > 0 || len(p.freeing) > 0 {
		p.c.Wake()
	}
	p.startFetches()
}

// bury takes an entry out of everything but the device, whose block Pump frees.
func (p *Pool) bury(e *entry) {
	if e.queueAt != nil {
		if e.state == stateQueued {
			p.fetchQ.Remove(e.queueAt)
		} else {
			p.deviceQ.Remove(e.queueAt)
		}
		e.queueAt = nil
	}
	p.dropHost(e)
	e.state = stateDead
	if p.entries[e.key] == e {
		delete(p.entries, e.key)
	}
}
