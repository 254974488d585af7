package infer

import (
	"fmt"

	"bhive/kernels"
)

// kvBlocks is how many blocks of a KV cache fit in bytes, no more than are of use, and what they take; 0 where that is not even a prompt of one
// token and its successor.
func (c Config) kvBlocks(bytes, tokenBytes int64) (blocks int, taken int64) {
	each := int64(c.BlockTokens) * tokenBytes
	useful := int64(c.MaxSeqs) * int64((c.MaxContext+c.BlockTokens-1)/c.BlockTokens) * 2 // more are of no use but for prefixes
	n := min(max(bytes, 0)/each, useful)
	if n*int64(c.BlockTokens) < 2 {
		return 0, bytes
	}
	return int(n), n * each
}

// withFreeMemory is the configuration whose KV cache takes what a device has left by MemoryUtilization and Reserve. ErrNoMemory where that is
// nothing.
func (c Config) withFreeMemory(info kernels.Info, tokenBytes int64) (Config, error) {
	left := info.MemoryFree - c.Reserve - int64((1-c.MemoryUtilization)*float64(info.MemoryTotal))
	if c.KVBlocks, c.KVBytes = c.kvBlocks(left, tokenBytes); c.KVBlocks == 0 {
		return c, fmt.Errorf("the KV cache: of %d MiB on the device %d are free, %d of them reserved, and a utilization of %v leaves %d: %w",
			info.MemoryTotal>>20, info.MemoryFree>>20, c.Reserve>>20, c.MemoryUtilization, left>>20, kernels.ErrNoMemory)
	}
	c.MaxContext = min(c.MaxContext, c.KVBlocks*c.BlockTokens)
	return c, nil
}
