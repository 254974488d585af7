// Package checkpoint reads model checkpoints: Hugging Face directories (safetensors) and GGUF files, memory-mapped.
//
// Life of a checkpoint: [Open] maps the files, parses their headers, brings the architecture into one [Config] whatever
// the format, and checks that every tensor of [Config.TensorNames] is there in the right shape. [Checkpoint.Tensor]
// then gives views of the mapped bytes under Hugging Face names; a row is turned into float32 or bfloat16 when it is
// asked for, and nothing is copied before. [Checkpoint.Close] unmaps: no Tensor may be used afterwards.
//
// Invariants:
//
//   - After a successful Open every tensor lies inside its file; no length from a file is believed before it is checked.
//     The sizes are those at Open: a file that is truncated later is not guarded against.
//   - Rows are in Hugging Face order. The converter of llama.cpp interleaves the rows of q and k in files of the llama
//     architecture; they are put back on reading, so that the model always rotates halves.
//   - The package reads no environment and keeps no state.
package checkpoint
