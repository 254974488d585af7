// Package finetune trains adapters: LoRA-FA B's over the frozen base and the shared A, several tenants' in one batch, beside serving.
//
// # Life of a job
//
// Submit stores a spec and its examples: queued. The manager's Run takes it up: validating_files reads and renders the examples.
// Running, the job holds a lane of the trainer. The engine calls Slice between decode steps; Slice runs a few layers of a
// micro-batch. At the end the lane's B is rounded to bfloat16, stored and published as a version, and is live: succeeded.
package finetune
