// Package chat renders conversations by a model's chat template, byte for byte as Hugging Face Transformers does.
//
// Life of one rendering: a Template is compiled once (Parse, FromHF); Render turns messages and tools into template values that
// keep the order of keys, adds the special tokens and helper functions, and executes it. RenderWithMask also tells which bytes
// a model is trained to produce.
//
// Invariants:
//   - A Template is immutable and safe for concurrent use.
//   - Whatever a template does, Render returns text or an error: never a panic.
//   - Blocks are trimmed as Transformers trims them (trim_blocks, lstrip_blocks), tojson escapes neither HTML nor non-ASCII.
package chat
