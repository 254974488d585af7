package tokenizer

import "errors"

var (
	// ErrFormat is returned when a tokenizer.json or GGUF vocabulary contradicts itself or is not what it should be.
	ErrFormat = errors.New("tokenizer: malformed vocabulary")
	// ErrUnsupported is returned when a tokenizer names a model, normalizer, pre-tokenizer, post-processor, decoder or
	// option that this package does not know. The message names it.
	ErrUnsupported = errors.New("tokenizer: not supported")
)
