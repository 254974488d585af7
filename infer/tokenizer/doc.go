// Package tokenizer turns text into token ids and back, equal to Hugging Face's tokenizers on every string.
//
// A Tokenizer is loaded from a tokenizer.json (Parse) or from the metadata of a GGUF file (FromGGUF). Both describe BPE:
// over the bytes of a word (GPT-2, Llama 3, Qwen, SmolLM, Tekken) or over characters with byte fallback (SentencePiece).
//
// Life of one text in Encode:
//
//	text ─ added tokens as they stand ─ normalizer ─ added tokens of normalized text ─ pre-tokenizer ─ BPE ─ post-processor
//
// and of ids in Decode and Stream, which run the very same stages:
//
//	ids ─ token strings (special ones skipped on demand) ─ decoder stages ─ text
//
// Invariants:
//   - A Tokenizer is immutable but for a bounded cache of words, and safe for concurrent use. A Stream belongs to one goroutine.
//   - Input that is not UTF-8 is taken as if each maximal invalid part were U+FFFD, which is what a lossy conversion to a
//     string does before Hugging Face's library sees it. Decode's result is always UTF-8.
//   - The time of Encode is O(n log n) in the text's length whatever the text is.
//   - Concatenating all Stream.Add and the Stream.Flush gives what Decode gives of all ids.
//   - truncation and padding of a tokenizer.json are not applied: they belong to the caller's batch.
//
// Split patterns in wide use (GPT-2, Llama 3, Qwen 2, Tekken, o200k) are recognised by their exact text and scanned by
// hand-written code; any other runs on a backtracking regular expression engine. A case-insensitive group of such
// another pattern folds letters one to one: it does not see that "ſ" is an "s".
package tokenizer
