package cpu

import (
	"errors"
	"fmt"
	"runtime"

	"bhive/kernels"
)

// ErrConfig is returned by Open for a Config that cannot be used; it is wrapped with the field's name.
var ErrConfig = errors.New("cpu: bad configuration")

// Config says how the CPU backend runs. The zero Config is valid.
type Config struct {
	// Threads is how many threads take part in an op, the caller included. 0: GOMAXPROCS.
	Threads int
	// Working is the dtype of z, A, B, K and V: F32 (the zero value) or BF16.
	Working kernels.DType
	// MemoryBytes limits what tensors, weights and caches may take, in bytes. 0: the machine's memory, or
	// the process's share of it, where that is known.
	MemoryBytes int64
}

// Validate names the first field that cannot be used.
func (c Config) Validate() error {
	switch {
	case c.Threads < 0 || c.Threads > 1024:
		return fmt.Errorf("%w: Threads is %d, not in 0…1024", ErrConfig, c.Threads)
	case c.Working != kernels.F32 && c.Working != kernels.BF16:
		return fmt.Errorf("%w: Working is %d, not float32 or bfloat16", ErrConfig, c.Working)
	case c.MemoryBytes < 0:
		return fmt.Errorf("%w: MemoryBytes is %d, below 0", ErrConfig, c.MemoryBytes)
	}
	return nil
}

func (c Config) threads() int {
	if c.Threads > 0 {
		return c.Threads
	}
	return runtime.GOMAXPROCS(0)
}
