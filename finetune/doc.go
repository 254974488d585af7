// Package finetune trains adapters: LoRA-FA B's over the frozen base and the shared A, several tenants' in one batch, beside serving.
//
// # Life of a job
//
// [Manager.Submit] checks a spec, stores its examples as a blob and the job as a record of the [adapters.Store]: queued. The goroutine of
// [Manager.Run] takes it up when a lane is free: validating_files reads and renders the examples with the base's own template.
// Running, the job holds a [Lane] of the [Trainer]. The engine enqueues units between its steps ([Manager.Next], [Manager.Enqueue]): a third of a layer of
// one micro-batch forward or backward, the losses of some tokens, a lane's update, a part of a sample's token, or the copy of a piece of a lane
// to the host. At the end B is rounded to bfloat16 and published in one transaction with the job's last state: succeeded, and the adapter is live.
// The store begins with it while the device gives the rest: Run's goroutine waits for the engine's then, and never the other way round.
//
// # Life of a micro-batch
//
// A lane cuts its optimizer step into chunks of whole examples ([Chunk]). The trainer fills a micro-batch with the next chunk of each lane in
// turn, as they fit. Forward with an [infer.Save]; cross-entropy, each token weighted by 1/(its lane's trained tokens of
// the whole optimizer step); backward from the last layer to the first, where it stops early: below attn_in of layer 0
// nothing is trained. All of that, and the samples between two micro-batches, lie in one [infer.Training]. When a lane's last chunk is
// through, the lane's gradient norm, clipping, correction and AdamW follow, and nobody else's.
//
// # Invariants
//
//   - A lane comes out the same, bit for bit on a batch-invariant backend, alone or beside others: how its examples are cut
//     depends on it alone, and all sums of a lane are in the order of its tokens.
//   - A [Checkpoint] is a lane between two optimizer steps. Leaving in mid-step loses that step's part, which is done again; the
//     end is the same bit for bit.
//   - A step whose gradient is not finite changes nothing but the schedule's position and the counters of skipped steps.
//   - A copy of a lane to the host is of one moment: no optimizer step comes between its pieces.
//   - No sample is begun or goes on before the micro-batch under way is through: they use the same memory. A lane goes on when its samples are through. Other
//     lanes have a micro-batch after every 32 tokens of a sample, whose keys and values are then computed again.
//   - Jobs change on Run's goroutine alone, the device on the engine's alone; they talk by posting functions to each other.
//   - Nobody sees a job's end before it is durable; a pause, a resumption and a cancellation are durable when they are acknowledged. What
//     cannot be stored changes nothing: the job goes on.
//   - A job is begun when the lane that it is to have is free on the device, not when the one before is done with it.
//   - No tenant keeps another from a lane, or from its share of the places in the queue: a job gives its lane up between two steps, and goes on later.
//   - A job trains over the base model and the rows of A that it began with.
//   - Prompt and completion become a user's and the assistant's turn where the base has a chat template, unless the job says raw. Examples of
//     tokens (input_ids, labels) are taken as they are.
package finetune
