package infer

import (
	"fmt"
	"unsafe"

	"bhive/kernels"
)

// bucket is a size of step that is prepared for: its record on the device, one on the host for each step that may be under way, and,
// for decode steps, a captured graph.
type bucket struct {
	kernels.Bucket
	step    kernels.Step
	records []*kernels.Record // used in turn
	turn    int
	graph   kernels.Graph
}

// shape of the steps of a configuration: decode steps of 1, 2, 4, … sequences, and mixed steps of a few token counts.
func bucketShapes(c Config) []kernels.Bucket {
	blocks := (c.MaxContext + c.BlockTokens - 1) / c.BlockTokens
	var shapes []kernels.Bucket
	for n := 1; ; n *= 2 {
		n = min(n, c.MaxSeqs)
		shapes = append(shapes, kernels.Bucket{Tokens: n, Seqs: n, Rows: n, Blocks: blocks, MaxQuery: 1})
		if n == c.MaxSeqs {
			break
		}
	}
	for n := 16; ; n *= 2 {
		n = min(n, c.MaxTokens)
		shapes = append(shapes, kernels.Bucket{Tokens: n, Seqs: c.MaxSeqs, Rows: c.MaxSeqs + c.PromptRows, Blocks: blocks, MaxQuery: n})
		if n == c.MaxTokens {
			break
		}
	}
	return shapes
}

// bucketFor is the smallest bucket that a plan fits in.
func bucketFor(buckets []*bucket, p *plan) *bucket {
	longest := 0
	for _, it := range p.items {
		longest = max(longest, it.n)
	}
	for _, b := range buckets {
		if p.tokens <= b.Tokens && len(p.items) <= b.Seqs && p.rows <= b.Rows && longest <= b.MaxQuery {
			return b
		}
	}
	panic(fmt.Sprintf("infer: no bucket for a step of %d tokens, %d sequences, %d rows", p.tokens, len(p.items), p.rows))
}

// next is the record to fill now: the one used longest ago, whose step has been read.
func (b *bucket) next() *kernels.Record {
	b.turn = (b.turn + 1) % len(b.records)
	return b.records[b.turn]
}

// resources is device and pinned memory that is freed together.
type resources struct {
	backend kernels.Backend
	tensors []kernels.Tensor
	pinned  [][]byte
	err     error // the first failure; nothing is allocated after it
}

func (r *resources) tensor(d kernels.DType, rows, cols int) kernels.Tensor {
	if r.err != nil {
		return kernels.Tensor{}
	}
	t, err := r.backend.Alloc(d, rows, cols)
	if err != nil {
		r.err = err
		return kernels.Tensor{}
	}
	r.tensors = append(r.tensors, t)
	return t
}

// words is pinned host memory of n words.
func (r *resources) words(n int) []int32 {
	if r.err != nil || n == 0 {
		return make([]int32, n)
	}
	p, err := r.backend.Pinned(4 * n)
	if err != nil {
		r.err = err
		return make([]int32, n)
	}
	r.pinned = append(r.pinned, p)
	return unsafe.Slice((*int32)(unsafe.Pointer(unsafe.SliceData(p))), n)
}

func (r *resources) free() {
	for _, t := range r.tensors {
		r.backend.Free(t)
	}
	for _, p := range r.pinned {
		r.backend.FreePinned(p)
	}
	r.tensors, r.pinned = nil, nil
}

// bytesOf is words as they are copied to or from the device.
func bytesOf[E int32 | float32](w []E) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(w))), 4*len(w))
}
