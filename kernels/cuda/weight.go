//go:build cuda

package cuda

import (
	"fmt"
	"math"
	"unsafe"

	"gorgonia.org/cu"

	"bhive/kernels"
)

// weight is [W; A] as one matrix of the working dtype, row-major.
type weight struct {
	at         cu.DevicePtr
	out, in, r int
	bytes      int64
}

func (w *weight) Out() int     { return w.out }
func (w *weight) In() int      { return w.in }
func (w *weight) R() int       { return w.r }
func (w *weight) Bytes() int64 { return w.bytes }

// rows of [W; A].
func (w *weight) rows() int { return w.out + w.r }

// NewWeight copies a weight in. It returns ErrNoMemory where it does not fit, and an error for a format that this device does not keep or
// parts that do not belong together. A float32 device keeps bfloat16 weights widened; their values are the same.
func (b *Backend) NewWeight(spec kernels.WeightSpec) (kernels.Weight, error) {
	defer b.enter()()
	switch {
	case spec.Shard.Count > 1:
		return nil, fmt.Errorf("cuda: shard %d of %d: several devices are not supported yet", spec.Shard.Index, spec.Shard.Count)
	case len(spec.Parts) == 0:
		return nil, fmt.Errorf("cuda: a weight without parts")
	case spec.Format != kernels.FormatBF16 && (spec.Format != kernels.FormatF32 || b.config.Working != kernels.F32):
		return nil, fmt.Errorf("cuda: weights in format %q are not on this device yet, with activations in %s", spec.Format, b.config.Working)
	}
	w := &weight{in: spec.Parts[0].Cols()}
	parts := spec.Parts
	for i, p := range parts {
		if p.Cols() != w.in {
			return nil, fmt.Errorf("cuda: part %d of a weight has %d columns, the first %d", i, p.Cols(), w.in)
		}
		w.out += p.Rows()
	}
	if spec.A != nil {
		if spec.A.Cols() != w.in {
			return nil, fmt.Errorf("cuda: A has %d columns, its weight %d", spec.A.Cols(), w.in)
		}
		w.r = spec.A.Rows()
		parts = append(parts[:len(parts):len(parts)], spec.A)
	}
	size := b.config.Working.Size()
	w.bytes = int64(w.rows()) * int64(w.in) * int64(size)
	var err error
	if w.at, err = b.allocate(w.bytes); err != nil {
		return nil, err
	}
	at := w.at
	for _, p := range parts {
		n := p.Rows() * p.Cols()
		if f, ok := p.(kernels.Random); ok {
			b.fill(at, n, f)
		} else {
			// A is kept in the working dtype, W of a bfloat16 format rounded.
			b.copyRows(at, p, spec.Format == kernels.FormatBF16)
		}
		at += cu.DevicePtr(n * size)
	}
	b.keep(b.setup.Synchronize())
	if err := b.failure(); err != nil {
		b.keep(cu.MemFree(w.at))
		return nil, err
	}
	return w, nil
}

// fill makes a random matrix on the device. Values of a float32 device are rounded to bfloat16 as on any other.
func (b *Backend) fill(at cu.DevicePtr, n int, f kernels.Random) {
	b.launchOn(b.setup, "fill"+b.suffix(), 8*b.processors, 1, 1, 256, 0, false, uint64(at), uint64(n), float(float64(f.Scale)), f.Seed)
}

// copyRows uploads a host matrix a few rows at a time.
func (b *Backend) copyRows(at cu.DevicePtr, p kernels.Matrix, round bool) {
	rows, cols := p.Rows(), p.Cols()
	each := max(1, min(rows, 4<<20/max(1, cols)))
	row := make([]float32, cols)
	if b.config.Working == kernels.BF16 {
		half := make([]uint16, each*cols)
		for i := 0; i < rows; i += each {
			n := min(each, rows-i)
			for j := range n {
				p.Row(i+j, row)
				for k, v := range row {
					half[j*cols+k] = roundBF16(v)
				}
			}
			b.keep(cu.MemcpyHtoD(at+cu.DevicePtr(2*i*cols), unsafe.Pointer(&half[0]), int64(2*n*cols)))
		}
		return
	}
	full := make([]float32, each*cols)
	for i := 0; i < rows; i += each {
		n := min(each, rows-i)
		for j := range n {
			dst := full[j*cols:][:cols]
			p.Row(i+j, dst)
			if round {
				for k, v := range dst {
					dst[k] = math.Float32frombits(uint32(roundBF16(v)) << 16)
				}
			}
		}
		b.keep(cu.MemcpyHtoD(at+cu.DevicePtr(4*i*cols), unsafe.Pointer(&full[0]), int64(4*n*cols)))
	}
}

// roundBF16 rounds to the nearest bfloat16, ties to even; NaN stays NaN.
func roundBF16(v float32) uint16 {
	u := math.Float32bits(v)
	if v != v {
		return uint16(u>>16) | 0x40
	}
	return uint16((u + 0x7fff + u>>16&1) >> 16)
}

// FreeWeight gives a weight's memory back.
func (b *Backend) FreeWeight(k kernels.Weight) {
	defer b.enter()()
	w := k.(*weight)
	b.keep(cu.MemFree(w.at))
	*w = weight{}
}

// kvCache holds K and V of each layer as [slots, Hkv, D], all layers in one allocation.
type kvCache struct {
	spec  kernels.KVSpec
	at    cu.DevicePtr
	each  int64 // bytes of K, or of V, of one layer
	bytes int64
}

func (c *kvCache) Spec() kernels.KVSpec { return c.spec }
func (c *kvCache) Bytes() int64         { return c.bytes }

func (c *kvCache) k(layer int) uint64 { return uint64(c.at) + uint64(2*int64(layer)*c.each) }
func (c *kvCache) v(layer int) uint64 { return c.k(layer) + uint64(c.each) }

// NewKVCache allocates a cache, or returns ErrNoMemory, or an error for heads that are too large.
func (b *Backend) NewKVCache(s kernels.KVSpec) (kernels.KVCache, error) {
	defer b.enter()()
	if s.Layers <= 0 || s.Blocks <= 0 || s.BlockTokens <= 0 || s.KVHeads <= 0 || s.HeadDim <= 0 {
		return nil, fmt.Errorf("cuda: a KV cache of %+v", s)
	}
	if s.HeadDim > mostHead {
		return nil, fmt.Errorf("cuda: heads of %d values are not on this device, at most %d are", s.HeadDim, mostHead)
	}
	c := &kvCache{spec: s}
	block := int64(s.BlockTokens) * int64(s.KVHeads) * int64(s.HeadDim) * int64(b.config.Working.Size())
	if int64(s.Blocks) > 1<<46/2/block/int64(s.Layers) {
		return nil, fmt.Errorf("cuda: a KV cache of %d blocks: %w", s.Blocks, kernels.ErrNoMemory)
	}
	c.each = block * int64(s.Blocks)
	if s.In.Present() {
		c.at = cu.DevicePtr(in(s.In, b.config.Working, s.Elements()))
		return c, nil
	}
	c.bytes = 2 * c.each * int64(s.Layers)
	var err error
	if c.at, err = b.zeroed(c.bytes); err != nil {
		return nil, err
	}
	return c, nil
}

// in is the address of memory [1, ≥ n] for a cache.
func in(t kernels.Tensor, d kernels.DType, n int) uint64 {
	if t.DType != d || t.Rows != 1 || t.Cols < n || address(t)%16 != 0 { // kernels read 16 bytes at a time
		panic(fmt.Sprintf("cuda: a KV cache of %d elements %s in %s [%d, %d] at %#x", n, d, t.DType, t.Rows, t.Cols, address(t)))
	}
	return address(t)
}

// FreeKVCache gives a cache's memory back.
func (b *Backend) FreeKVCache(kv kernels.KVCache) {
	defer b.enter()()
	c := kv.(*kvCache)
	if c.bytes > 0 {
		b.keep(cu.MemFree(c.at))
	}
	*c = kvCache{spec: c.spec}
}

// adapterTable is {block, rank} by slot, 16 bytes each, on the device.
type adapterTable struct {
	at    cu.DevicePtr
	slots int
}

func (t *adapterTable) Slots() int { return t.slots }

// NewAdapterTable makes an empty table.
func (b *Backend) NewAdapterTable(slots int) (kernels.AdapterTable, error) {
	defer b.enter()()
	p, err := b.zeroed(int64(16 * slots))
	if err != nil {
		return nil, err
	}
	b.owned = append(b.owned, p)
	return &adapterTable{p, slots}, nil
}

// FreeAdapterTable frees a table.
func (b *Backend) FreeAdapterTable(k kernels.AdapterTable) {
	defer b.enter()()
	b.release(k.(*adapterTable).at)
}

// SetAdapter writes or empties an entry.
func (b *Backend) SetAdapter(s kernels.Stream, k kernels.AdapterTable, slot int, block kernels.Tensor, rank int) {
	t := k.(*adapterTable)
	if slot < 0 || slot >= t.slots {
		panic(fmt.Sprintf("cuda: adapter slot %d of %d", slot, t.slots))
	}
	if !block.Present() {
		rank = 0
	} else if rank <= 0 || block.Rows != 1 || block.Cols%rank != 0 || block.DType != b.config.Working || address(block)%16 != 0 {
		panic(fmt.Sprintf("cuda: an adapter of rank %d in a block %s [%d, %d] at %#x", rank, block.DType, block.Rows, block.Cols, address(block)))
	}
	b.launch(s, "set_adapter", 1, 1, 1, 1, 0, uint64(t.at), uint64(slot), address(block), uint64(rank))
}
