// Package cpu is the kernels.Backend of the host: every op in Go over the primitives of package simd. It is the
// default backend and the oracle that other devices are tested against.
//
// # Life of an op
//
// An op checks its shapes, then runs at the call, to its end, on the caller and on the workers of the backend's pool: a
// stream is trivially in order, an event is done when it is made. While a stream is captured the op is kept as a closure
// instead, and [kernels.Graph.Launch] runs the closures. Ops take every value that changes from step to step from the step
// record when they run, so a replay sees the record as it then is.
//
// Work is split over outputs, heads or tokens. Each op has one task value in the backend, filled at the call and read by
// the workers; hence one op at a time, all from one goroutine.
//
// # Invariants
//
//   - Batch invariance, bit for bit: package simd fixes the order of every reduction; attention reduces over positions from
//     the first visible one in one order; nothing depends on the thread count, the chunking of a prompt, or the other tokens.
//   - Ops allocate nothing once scratch has grown to the shapes in use.
//   - An op may use the first columns of a yz that it consumes as scratch: after an epilogue they hold y + bias + B·z.
//   - No goroutine is left after Close.
package cpu
