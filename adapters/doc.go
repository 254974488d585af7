// Package adapters holds everything about LoRA-FA adapters: the shared basis (all lora_A's of a base model), the
// tenants' lora_B's with their versions, the registry over a store, and the pool that keeps B's on the device.
//
// # Life of a B
//
// A trainer, or a PEFT adapter that a Basis adopts or projects, gives Weights in the flat layout (see Geometry).
// Registry.Save encodes them to a blob, stores it under its hash and publishes a Version: the store assigns the
// number, moves the live pointer and appends to the change feed in one transaction. A B that comes from the device in pieces goes into
// an Encoding, which the store reads while the rest is on its way. A request names a Ref, which
// Registry.Resolve turns into a Target of immutable versions, for which Pool.Acquire gives a Lease. Basis.Export writes
// Weights out again as an ordinary LoRA for PEFT.
//
// # Life of a pool entry
//
//	queued → fetching → host → uploading → resident → (host) → gone
//
// A fetcher goroutine reads the blob, verifies it, sums a mix, folds scaling in and packs it to the working type; from
// then on it is in host memory. Pump, on the engine's goroutine, evicts for it, allocates, starts the upload, and once
// that has ended sets the slot: only then the lease is ready. Evicted from the device, a B stays in host memory as
// long as there is room. What Registry.Save publishes enters at host: packed from the blob while that is being stored,
// under a name that no target has until the version is live. A failed fetch fails its leases and is forgotten: the next Acquire tries again.
// A queued entry whose last lease ends is gone.
//
// # Invariants
//
//   - Rows of a basis are nested and never change: row i does not depend on R.
//   - A version is immutable, and its number is never used again, so a Target's Key means the same for ever.
//   - A leased or pinned entry keeps its slot and its bytes; two entries never share a slot.
//   - Where a B waits for the device and all on it are leased, after two seconds new leases of one wait behind it.
//   - The budgets hold at every moment; the parts of a mix that is being summed are not counted.
//   - Only Pump and Close touch the device. Acquire waits for nothing.
package adapters
