package adapters

import (
	"context"
)

// Block is a piece of device memory, opaque to the pool.
type Block any

// Device is what the pool needs of a device. The pool calls it from Pump and Close only, so from the engine's own goroutine and
// between steps; it need not be safe for concurrent use.
type Device interface {
	// Alloc reserves device memory; ErrNoMemory where there is none.
	Alloc(bytes int64) (Block, error)
	// Free gives it back, after work that was already enqueued.
	Free(Block)
	// Upload starts a copy of src into b, and returns at once. done says, without waiting, whether the copy has ended; src is kept
	// unchanged until then.
	Upload(b Block, src []byte) (done func() bool)
	// SetSlot points an adapter slot of the device's table at a B of that rank, effective from the next step. A nil block empties it.
	SetSlot(slot int, b Block, rank int)
}

// BaseSlot is the slot of sequences without an adapter.
const BaseSlot = -1

// PoolConfig sizes a pool.
type PoolConfig struct {
	Geometry    Geometry
	DType       DType  // working type of B on the device; default: BF16
	Slots       int    // entries of the device's slot table, 0 … Slots−1; default: 256
	DeviceBytes int64  // budget for B's on the device, bytes; default: 1 GiB
	HostBytes   int64  // budget for B's in host memory, bytes; default: 4 GiB
	Fetchers    int    // fetches from the store at once; default: 4
	Wake        func() // called, from any goroutine and without waiting for anything, when Pump has something to do; may be nil

	// Check, where set, decides whether a version may be loaded (base and basis); NewPool's caller usually gives CheckVersion.
	Check func(Version) error
}

// BlobOpener is the part of Store that the pool reads.
type BlobOpener interface {
	OpenBlob(ctx context.Context, tenant, sha string) (BlobReader, error)
}

// Pool keeps B's in three tiers: device slots, host memory, store. See doc.go for the life of an entry.
type Pool struct{}

// NewPool makes a pool; Close gives everything back.
func NewPool(c PoolConfig, blobs BlobOpener, d Device) (*Pool, error) { panic("to come") }

// Acquire leases a target. It never waits: a resident target (and the base) is ready at once, another one is fetched in the background,
// and Ready tells when. Every lease must be released. The error is ErrClosed, ErrNoMemory (larger than a budget), ErrRank or Check's.
func (p *Pool) Acquire(t Target) (*Lease, error) { panic("to come") }

// Pump does what must happen between steps: admits fetched B's to the device, finishes uploads, sets slots, frees evicted
// blocks. The engine calls it on its own goroutine before each step. It says whether copies are under way, so that an idle
// engine calls again soon; all else is told by Wake.
func (p *Pool) Pump() (pending bool) { panic("to come") }

// Pin keeps a target resident: it is fetched now and not evicted until Unpin. Pins are counted.
func (p *Pool) Pin(t Target) error { panic("to come") }

// Unpin undoes one Pin.
func (p *Pool) Unpin(t Target) { panic("to come") }

// Forget drops what no lease holds of a deleted version (number 0: of all versions of the name), also mixes with it, and the
// rest at its last release.
func (p *Pool) Forget(tenant, name string, number int) { panic("to come") }

// Stats is a snapshot for metrics.
func (p *Pool) Stats() PoolStats { panic("to come") }

// Close stops fetching and frees everything; outstanding leases become invalid. The engine must have stopped. Idempotent.
func (p *Pool) Close() error { panic("to come") }

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
	Misses      uint64 // Acquire had to ask the store
	Evictions   uint64 // from the device
	Failures    uint64 // fetches that failed
}

// Lease is a claim on a target for the time of a request. Its methods are safe for concurrent use.
type Lease struct{}

// Ready is closed when the target can be used or has failed; see Err.
func (l *Lease) Ready() <-chan struct{} { panic("to come") }

// Err is why the target could not be loaded; nil before Ready and on success.
func (l *Lease) Err() error { panic("to come") }

// Slot is the adapter slot to use in steps after Ready without Err; BaseSlot for the base. It stays the same until Release.
func (l *Lease) Slot() int { panic("to come") }

// Rank is the rank of the B in the slot; 0 for the base.
func (l *Lease) Rank() int { panic("to come") }

// Key is the target's key: what prefix-cache keys hold.
func (l *Lease) Key() string { panic("to come") }

// Release ends the lease. Idempotent.
func (l *Lease) Release() { panic("to come") }

// CheckVersion is the usual PoolConfig.Check: the version's base must be the basis' (ErrBaseMismatch), its rank at most R (ErrRank), and its
// digest that of the basis' rows (ErrBasisMismatch).
func CheckVersion(b *Basis) func(Version) error { panic("to come") }
