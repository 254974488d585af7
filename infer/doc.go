// Package infer runs a base model with many tenants' adapters: checkpoints, tokenizer and chat templates lie below it; here are the
// model on a device, its forward pass, KV blocks and prefix cache, the scheduler and the Engine.
//
// # The model
//
// [Load] puts a checkpoint on a device, the basis' A's stacked under the weights of the four sites of each layer. The forward pass is
// written once over kernels.Backend: [Model.EmbedTokens], [Model.Forward] over any range of layers, [Model.Logits]. Activations are a
// [State] that the caller owns, what a backward reads goes to an optional [Save], both of them in one [Training] where the model is trained,
// and what changes from step to step stands in the step record alone ([FillRecord]), so that a step can be captured and replayed. A [Scorer] runs sequences without an
// engine: for evaluation, [Calibrate] and tests.
//
// # Life of one step
//
// The engine's goroutine schedules: decodes first, then chunks of prompts, under a token budget. It fills the record, uploads it with
// one copy, enqueues the forward pass and the sampling, and reads the sampled tokens. What a constraint allows next is found on another goroutine:
// where that takes longer than some milliseconds, steps go on without its sequence. Training runs between steps
// on the same goroutine ([Background]): where a step decodes, as much of it goes between that step and the next as keeps the time from token to
// token under a target; where a prompt waits, none but what somebody waits for ([Unit.Due]).
//
// # Invariants
//
//   - A sequence's logits do not depend on its batch, on chunking, or on prefix hits, bit for bit, where the backend is batch-invariant.
//   - A B of zeros, an empty adapter slot and no adapter give the same logits, bit for bit.
//   - All ops are called from one goroutine.
package infer
