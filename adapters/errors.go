package adapters

import "errors"

// Errors that callers tell apart with errors.Is. Every one comes wrapped with what was being done.
var (
	// ErrNotFound: no such adapter, version, job, file, value or blob, or it belongs to another tenant.
	ErrNotFound = errors.New("not found")
	// ErrExists: the name or id is taken already.
	ErrExists = errors.New("already exists")
	// ErrConflict: the record is no longer the one that the caller had read (a stale revision, another live
	// version than expected), or the live version was asked to be deleted.
	ErrConflict = errors.New("conflict")
	// ErrInvalidName: a name, tenant, id or reference is not well formed.
	ErrInvalidName = errors.New("invalid name")
	// ErrBasisMismatch: an adapter was trained over other rows than the basis in use has.
	ErrBasisMismatch = errors.New("adapter of another basis")
	// ErrBaseMismatch: an adapter or basis belongs to another base model, or its shapes do.
	ErrBaseMismatch = errors.New("adapter of another base model")
	// ErrRank: a rank is below 1 or above the basis' R, or the ranks of one adapter do not fit together.
	ErrRank = errors.New("bad rank")
	// ErrCorrupt: stored or given bytes are damaged, truncated or not of the expected format.
	ErrCorrupt = errors.New("corrupt")
	// ErrUnsupported: a well-formed adapter asks for what bhive does not do (DoRA, biases, …).
	ErrUnsupported = errors.New("not supported")
	// ErrStoreUnavailable: the store cannot be reached or cannot write now (also: disk full). Nothing was
	// changed by the failed call; it may be tried again.
	ErrStoreUnavailable = errors.New("adapter store unavailable")
	// ErrStoreLocked: another process holds the data directory.
	ErrStoreLocked = errors.New("adapter store in use by another process")
	// ErrCursorLost: the change feed no longer reaches back to the cursor; list everything again.
	ErrCursorLost = errors.New("change feed cursor too old")
	// ErrNoMemory: an adapter is larger than the pool's whole budget, or Device.Alloc found no memory.
	ErrNoMemory = errors.New("no adapter memory")
	// ErrMemoryBusy: Device.Alloc finds memory that was freed, but work under way still uses it.
	ErrMemoryBusy = errors.New("adapter memory still in use")
	// ErrClosed: the store or pool was closed.
	ErrClosed = errors.New("closed")
)
