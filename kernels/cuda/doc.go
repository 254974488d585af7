// Package cuda runs ops on an NVIDIA GPU. It is compiled under the build tag cuda; without it, [Open] says so.
//
// One op is one file of source/ (the kernel, its formula first) and one launcher here; all kernels lie in one embedded fatbin
// (make kernels). Context, module, memory, streams and events are gorgonia.org/cu's; driver.go holds what cu lacks: pinned
// memory, launches that overlap their predecessor, stream capture, and cuBLASLt.
//
// The driver is not linked: driver/forward.py writes a library of forwarders that find libcuda.so.1 when the program starts. Where there is
// none, cuInit reports success, so that the program runs, and [Probe] says why no GPU can be used.
//
// # Life of a step
//
// The record is uploaded with one copy; decode steps replay a captured graph. On Hopper a linear of few tokens streams the fused weight
// through tensor copies (linear_skinny.cu); above, cuBLASLt multiplies, or where it is absent or results may not depend on the batch, the same
// kernel again for each 128 tokens. Below Hopper, and for a small weight and few tokens, linear.cu takes its place. Epilogues add B·z. Sampling stays on the device.
//
// Kernels of a step overlap: each lets its successor start at once and waits for its predecessor's end before it touches what earlier ones
// write. Weights, the adapter table, B's, the record, and K and V of earlier steps are read before that: they are complete when a step
// begins, because a step begins with a copy, which nothing overlaps.
//
// Training runs the same linears, and dx = [dy, dz]·[W; A] over the same weights. Logits exist for a chunk of tokens at a time, 256 MiB at most, and
// their gradient takes their place.
//
// # Invariants
//
//   - With Working BF16 activations are bf16 as well and sums are float32; with F32 everything is float32, plain and slow, for tests.
//   - A process runs on one device; several backends may share it. What Open takes is given back by Close, or by Open where it fails.
//   - Methods may be called from any thread, one at a time; each makes the context current for its own thread.
//   - An error of the driver is sticky: it is kept and returned by the next Sync or Wait.
//   - Sums of training ops have one order whatever else is in the batch, and none is made by atomic additions: a run gives the same bits again.
//     Only cuBLASLt may choose another order for another bucket.
package cuda
