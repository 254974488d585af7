package checkpoint

import "errors"

var (
	// ErrUnsupported is returned by Open for a model that is well-formed but of a kind that is not implemented:
	// architecture, activation, RoPE scaling, tensor type, quantisation.
	ErrUnsupported = errors.New("unsupported checkpoint")
	// ErrFormat is returned by Open for files that are damaged or contradict themselves.
	ErrFormat = errors.New("malformed checkpoint")
	// ErrNoTensor is returned by Checkpoint.Tensor for a name that the checkpoint does not hold.
	ErrNoTensor = errors.New("no such tensor")
	// ErrUnknownModel is returned by Resolve for a name that is neither a known model nor an existing path.
	ErrUnknownModel = errors.New("unknown model")
)
