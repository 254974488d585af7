package cuda

import (
	"errors"
	"fmt"

	"bhive/kernels"
)

// ErrUnavailable is returned by Open and Probe where no GPU can be used; it is wrapped with the reason.
var ErrUnavailable = errors.New("cuda: no GPU can be used")

// ErrConfig is returned by Open for a Config that cannot be used; it is wrapped with the field's name.
var ErrConfig = errors.New("cuda: bad configuration")

// Config says how the GPU is used. The zero Config is valid.
type Config struct {
	// Device is the GPU's index, from 0.
	Device int
	// Working is the dtype of everything: F32 (the zero value; plain kernels, for tests) or BF16.
	Working kernels.DType
	// BatchInvariant gives a token the same bits in every batch: no cuBLASLt, and one kernel for all attention.
	BatchInvariant bool
	// NoLt leaves cuBLASLt unused.
	NoLt bool
	// NoWarpgroups leaves Hopper's warpgroup products unused: attention runs as on other cards.
	NoWarpgroups bool
	// NoOverlap starts a kernel only when the one before it has ended.
	NoOverlap bool
}

// Validate names the first field that cannot be used.
func (c Config) Validate() error {
	switch {
	case c.Device < 0:
		return fmt.Errorf("%w: Device is %d, below 0", ErrConfig, c.Device)
	case c.Working != kernels.F32 && c.Working != kernels.BF16:
		return fmt.Errorf("%w: Working is %d, not float32 or bfloat16", ErrConfig, c.Working)
	}
	return nil
}
