package adapters

import "context"

// Block is a piece of device memory, opaque to the pool.
type Block any

// Device is what the pool needs of a device. The pool calls it from Pump and Close only, so from the engine's own
// goroutine and between steps; it need not be safe for concurrent use.
type Device interface {
	// Alloc reserves device memory; ErrNoMemory where there is none, ErrMemoryBusy where what was freed is still in use: Pump asks again.
	Alloc(bytes int64) (Block, error)
	// Free gives it back, after work that was already enqueued.
	Free(Block)
	// Upload starts a copy of src into b and returns at once. done says, without waiting, whether the copy has ended;
	// src is kept unchanged until then.
	Upload(b Block, src []byte) (done func() bool)
	// SetSlot points an adapter slot of the device's table at a B of that rank, effective from the next step. A nil
	// block empties it.
	SetSlot(slot int, b Block, rank int)
}

// HostMemory is what a Device may offer besides: host memory from which its Upload needs no copy. Its methods are called from any goroutine.
type HostMemory interface {
	// AllocHost returns memory of that many bytes, or nil where none is left.
	AllocHost(bytes int64) []byte
	// FreeHost gives back what AllocHost returned.
	FreeHost([]byte)
}

// BlobOpener is the part of Store that the pool reads.
type BlobOpener interface {
	OpenBlob(ctx context.Context, tenant, sha string) (BlobReader, error)
}

// BaseSlot is the slot of sequences without an adapter.
const BaseSlot = -1
