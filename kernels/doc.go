// Package kernels holds what runs on a device: memory, streams and about thirty fused operations, as one
// interface, [Backend]. The model's forward and backward are written once over it and run on every device:
// kernels/cpu (Go and assembly; the oracle and the default) and kernels/cuda (build tag cuda).
// It knows nothing of checkpoints, requests or tenants.
//
// # Legend, used everywhere
//
//	T  tokens in this step            S    sequences in this step
//	L  layers                         H    hidden size
//	Hq, Hkv  query, key-value heads   D    head size
//	F  feed-forward size              V    vocabulary
//	R  rows of A kept (max rank)      r≤R  an adapter's rank: it uses A's first r rows
//	N  adapter slots on the device    P    tokens in a KV block
//
// Matrices are row-major, the last dimension contiguous. lora_A is [r, in], lora_B is [out, r], as PEFT stores them.
// A site is a place where the model multiplies by frozen weights; its fused weight is [W; A], [out+R, in]:
//
//	attn_in   q, k, v    [(Hq+2·Hkv)·D + R, H]      attn_out  o     [H + R, Hq·D]
//	mlp_in    gate, up   [2·F + R, H]               mlp_down  down  [H + R, F]
//
// One linear over it yields Y = X·Wᵀ and z = X·Aᵀ side by side, [T, out+R]; the epilogue that follows adds B·z for each
// token's own adapter. All B's of one adapter lie in one block of memory, the sites one after another, each [out, r], so
// that a site's B starts at r·(rows before it): see [BRef].
//
// # Life of one step
//
// The engine fills a [Record] on the host (tokens, positions, KV slots, block tables, adapter slots, segments, sampling
// parameters), uploads it with one copy into the [Step] of its bucket, and enqueues ops on a [Stream]. Ops read what changes from step
// to step from the step record alone, on the device; only bucket constants, shapes and handles are Go values. A recorded sequence
// of ops can therefore be replayed (a captured graph) with nothing but the record changed.
//
// # Invariants
//
//   - An op enqueues, returns nothing and allocates nothing. Failures surface at [Stream.Sync] or [Event.Wait].
//   - A result for one token does not depend on the other tokens of the step, where the backend says that it is batch-invariant.
//   - z is rounded to the working dtype between shrink and expand.
//   - A, B and the KV cache have the working dtype whatever the base's format.
//   - A shape mismatch is a bug and panics.
package kernels
