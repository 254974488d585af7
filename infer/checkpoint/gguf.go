package checkpoint

import (
	"fmt"
	"math"
	"math/bits"
	"slices"
	"strings"
)

// Limits of a GGUF's header.
const (
	maxGGUFName  = 1 << 16 // bytes of a key or tensor name
	maxGGUFDepth = 4       // arrays within arrays
	maxGGUFAlign = 1 << 20
)

// ggufFile is a parsed GGUF; tensors carry their names in the file.
type ggufFile struct {
	meta    *GGUFMeta
	tensors []Tensor
}

// ggmlTypes are the tensor types by number; those without a block size cannot be read.
var ggmlTypes = map[uint32]DType{
	0: F32, 1: F16, 2: Q4_0, 3: Q4_1, 6: Q5_0, 7: Q5_1, 8: Q8_0, 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 12: Q4_K, 13: Q5_K, 14: Q6_K, 15: "Q8_K",
	16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16",
	26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 30: BF16, 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}

// ggufCursor reads little-endian values; the first error sticks.
type ggufCursor struct {
	b   []byte
	at  int
	err error
}

func (c *ggufCursor) left() int { return len(c.b) - c.at }

func (c *ggufCursor) take(n uint64, what string) []byte {
	if c.err == nil && n > uint64(c.left()) {
		c.err = fmt.Errorf("%s of %d bytes at offset %d goes beyond the end of the file (%d bytes)", what, n, c.at, len(c.b))
	}
	if c.err != nil {
		return nil
	}
	c.at += int(n)
	return c.b[c.at-int(n) : c.at]
}

func (c *ggufCursor) u32(what string) uint32 {
	if b := c.take(4, what); b != nil {
		return le.Uint32(b)
	}
	return 0
}

func (c *ggufCursor) u64(what string) uint64 {
	if b := c.take(8, what); b != nil {
		return le.Uint64(b)
	}
	return 0
}

func (c *ggufCursor) text(limit uint64, what string) string {
	n := c.u64("length of " + what)
	if c.err == nil && n > limit {
		c.err = fmt.Errorf("%s of %d bytes, at most %d are allowed", what, n, limit)
	}
	return string(c.take(n, what))
}

// count reads a number of items of at least size bytes each.
func (c *ggufCursor) count(size uint64, what string) int {
	n := c.u64(what)
	if c.err == nil && n > uint64(c.left())/size {
		c.err = fmt.Errorf("%s = %d, more than the file can hold", what, n)
	}
	if c.err != nil {
		return 0
	}
	return int(n)
}

// parseGGUF reads the header of a GGUF of version 2 or 3 and checks that every tensor lies in the file, aligned and
// apart from the others.
func parseGGUF(data []byte) (*ggufFile, error) {
	f, err := readGGUF(data)
	if err != nil {
		return nil, fmt.Errorf("%w: GGUF: %w", ErrFormat, err)
	}
	return f, nil
}

func readGGUF(data []byte) (*ggufFile, error) {
	c := &ggufCursor{b: data}
	if magic := c.take(4, "magic"); c.err == nil && string(magic) != "GGUF" {
		return nil, fmt.Errorf("the file begins with %q, not with GGUF", magic)
	}
	version := c.u32("version")
	switch {
	case c.err != nil:
		return nil, c.err
	case bits.ReverseBytes32(version) == 2 || bits.ReverseBytes32(version) == 3:
		return nil, fmt.Errorf("the file is big-endian: %w", ErrUnsupported)
	case version != 2 && version != 3:
		return nil, fmt.Errorf("version %d (2 and 3 are read): %w", version, ErrUnsupported)
	}
	tensors := c.count(24, "tensor count")
	pairs := c.count(13, "metadata count")
	f := &ggufFile{meta: &GGUFMeta{values: map[string]any{}}}
	for range pairs {
		key := c.text(maxGGUFName, "metadata key")
		v := c.value(c.u32("type of "+key), key, 0)
		if c.err != nil {
			return nil, c.err
		}
		if _, ok := f.meta.values[key]; ok {
			return nil, fmt.Errorf("metadata key %q occurs twice", key)
		}
		f.meta.values[key] = v
	}
	if c.err != nil {
		return nil, c.err
	}
	return f, f.readTensors(c, tensors)
}

// readTensors reads the tensor table and places each tensor's bytes.
func (f *ggufFile) readTensors(c *ggufCursor, n int) error {
	type place struct {
		name       string
		begin, end uint64
	}
	seen, places := map[string]bool{}, []place(nil)
	for range n {
		name := c.text(maxGGUFName, "tensor name")
		dims := c.u32("dimensions of " + name)
		if c.err == nil && (dims < 1 || dims > 4) {
			return fmt.Errorf("tensor %q has %d dimensions", name, dims)
		}
		shape := make([]int, 0, 4)
		values := uint64(1)
		for range dims {
			d := c.u64("shape of " + name)
			hi, lo := bits.Mul64(values, d)
			if d == 0 || hi != 0 || lo > math.MaxInt64/8 {
				if c.err != nil {
					return c.err
				}
				return fmt.Errorf("tensor %q: dimension %d makes the shape empty or too large", name, d)
			}
			values, shape = lo, append(shape, int(d))
		}
		kind, offset := c.u32("type of "+name), c.u64("offset of "+name)
		switch {
		case c.err != nil:
			return c.err
		case seen[name]:
			return fmt.Errorf("tensor %q occurs twice", name)
		}
		seen[name] = true
		dtype, ok := ggmlTypes[kind]
		per, size := dtype.Block()
		switch {
		case !ok:
			return fmt.Errorf("tensor %q is of the unknown type %d: %w", name, kind, ErrUnsupported)
		case per == 0:
			return fmt.Errorf("tensor %q is stored as %s: %w", name, dtype, ErrUnsupported)
		case shape[0]%per != 0:
			return fmt.Errorf("tensor %q: rows of %d values are no whole %s blocks of %d", name, shape[0], dtype, per)
		}
		length := values / uint64(per) * uint64(size)
		if offset > uint64(len(c.b)) || length > uint64(len(c.b)) {
			return fmt.Errorf("tensor %q: %d bytes at offset %d go beyond the end of the file (%d bytes)", name, length, offset, len(c.b))
		}
		slices.Reverse(shape) // the file has the innermost dimension first
		f.tensors = append(f.tensors, Tensor{Name: name, Shape: shape, DType: dtype})
		places = append(places, place{name, offset, offset + length})
	}
	align := uint64(32)
	if v, ok := f.meta.Int("general.alignment"); ok {
		if v <= 0 || v > maxGGUFAlign || v&(v-1) != 0 {
			return fmt.Errorf("general.alignment = %d is no power of two up to %d", v, maxGGUFAlign)
		}
		align = uint64(v)
	} else if f.meta.Has("general.alignment") {
		return fmt.Errorf("general.alignment is no integer")
	}
	base := (uint64(c.at) + align - 1) / align * align
	for i, p := range places {
		if p.begin%align != 0 {
			return fmt.Errorf("tensor %q: offset %d is not aligned to %d", p.name, p.begin, align)
		}
		if base+p.end > uint64(len(c.b)) {
			return fmt.Errorf("tensor %q: %d bytes at %d go beyond the end of the file (%d bytes)", p.name, p.end-p.begin, base+p.begin, len(c.b))
		}
		f.tensors[i].data = c.b[base+p.begin : base+p.end : base+p.end]
	}
	slices.SortFunc(places, func(a, b place) int {
		if a.begin != b.begin {
			if a.begin < b.begin {
				return -1
			}
			return 1
		}
		return strings.Compare(a.name, b.name)
	})
	for i := 1; i < len(places); i++ {
		if places[i].begin < places[i-1].end {
			return fmt.Errorf("tensors %q and %q overlap", places[i-1].name, places[i].name)
		}
	}
	return nil
}
