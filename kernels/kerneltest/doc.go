// Package kerneltest helps to test what is built on a kernels.Backend.
//
// Life of a ledger: it stands before a backend, notes each stream, tensor, weight, cache, table and piece of pinned memory that is made, strikes it
// out when it is given back, and tells at the end what is left.
//
// Invariants:
//   - Handles pass through unchanged, so that the backend's ops know them.
//   - What is given back twice, or was never made, panics.
package kerneltest
