package cpu

import (
	"fmt"

	"bhive/kernels"
)

// kvCache holds K and V of each layer as [slots, Hkv, D].
type kvCache struct {
	spec  kernels.KVSpec
	k, v  []working // by layer
	width int       // Hkv·D: elements from a slot to the next
	bytes int64
}

func (c *kvCache) Spec() kernels.KVSpec { return c.spec }
func (c *kvCache) Bytes() int64         { return c.bytes }

// NewKVCache allocates a cache, or returns ErrNoMemory.
func (b *Backend) NewKVCache(s kernels.KVSpec) (kernels.KVCache, error) {
	if s.Layers <= 0 || s.Blocks <= 0 || s.BlockTokens <= 0 || s.KVHeads <= 0 || s.HeadDim <= 0 {
		return nil, fmt.Errorf("cpu: a KV cache of %+v", s)
	}
	c := &kvCache{spec: s, width: s.KVHeads * s.HeadDim}
	a := int64(s.BlockTokens) * int64(c.width) * int64(b.config.Working.Size()) // bytes of a block, K or V, of one layer
	if int64(s.Blocks) > maxBytes/2/a/int64(s.Layers) {
		return nil, fmt.Errorf("cpu: a KV cache of %d blocks: %w", s.Blocks, kernels.ErrNoMemory)
	}
	if s.In.Present() {
		if s.In.Rows != 1 || s.In.Cols < s.Elements() {
			panic(fmt.Sprintf("cpu: a KV cache of %d elements in [%d, %d]", s.Elements(), s.In.Rows, s.In.Cols))
		}
		each := s.Blocks * s.BlockTokens * c.width
		for i := range s.Layers {
			c.k = append(c.k, b.workingOf(s.In.ColRange(2*i*each, (2*i+1)*each), "KV cache"))
			c.v = append(c.v, b.workingOf(s.In.ColRange((2*i+1)*each, (2*i+2)*each), "KV cache"))
		}
		return c, nil
	}
	c.bytes = 2 * a * int64(s.Blocks) * int64(s.Layers)
	if err := b.reserve(c.bytes, "a KV cache"); err != nil {
		return nil, err
	}
	for range s.Layers {
		c.k = append(c.k, newWorking(b.config.Working, s.Blocks*s.BlockTokens*c.width))
		c.v = append(c.v, newWorking(b.config.Working, s.Blocks*s.BlockTokens*c.width))
	}
	return c, nil
}

// FreeKVCache gives a cache's memory back.
func (b *Backend) FreeKVCache(kv kernels.KVCache) {
	c := kv.(*kvCache)
	b.used -= c.bytes
	*c = kvCache{spec: c.spec}
}

// runs walks the positions [lo, hi) of a sequence as runs of consecutive cache slots.
type runs struct {
	blocks []int32 // the sequence's block table
	p      int     // tokens in a block
	at, hi int     // next position, end
}

// next gives the slot of the next run's first position and the run's length; 0 at the end.
func (r *runs) next() (slot, n int) {
	if r.at >= r.hi {
		return 0, 0
	}
	block, offset := r.at/r.p, r.at%r.p
	slot = int(r.blocks[block])*r.p + offset
	n = r.p - offset
	for r.at+n < r.hi && r.blocks[block+1] == r.blocks[block]+1 {
		block++
		n += r.p
	}
	n = min(n, r.hi-r.at)
	r.at += n
	return slot, n
}
