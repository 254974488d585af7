package checkpoint

import (
	"fmt"
	"math"
	"slices"
)

// GGUFMeta is a GGUF's metadata. The typed getters say false where the key is absent or of another type.
type GGUFMeta struct {
	values map[string]any // int64, uint64, float64, bool, string, []int64, []uint64, []float32, []float64, []bool, []string, []any
}

// Keys lists the keys in order.
func (m *GGUFMeta) Keys() []string {
	keys := make([]string, 0, len(m.values))
	for k := range m.values {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// Has says whether the key is there, of whatever type.
func (m *GGUFMeta) Has(key string) bool {
	_, ok := m.values[key]
	return ok
}

// String is a string value.
func (m *GGUFMeta) String(key string) (string, bool) {
	s, ok := m.values[key].(string)
	return s, ok
}

// Int is an integer value of any width that fits.
func (m *GGUFMeta) Int(key string) (int, bool) {
	switch v := m.values[key].(type) {
	case int64:
		return int(v), v >= math.MinInt && v <= math.MaxInt
	case uint64:
		return int(v), v <= math.MaxInt
	}
	return 0, false
}

// Float is a value of either float width.
func (m *GGUFMeta) Float(key string) (float64, bool) {
	f, ok := m.values[key].(float64)
	return f, ok
}

// Bool is a boolean value.
func (m *GGUFMeta) Bool(key string) (value, ok bool) {
	value, ok = m.values[key].(bool)
	return value, ok
}

// Strings is an array of strings (tokenizer.ggml.tokens, tokenizer.ggml.merges). Do not change it.
func (m *GGUFMeta) Strings(key string) ([]string, bool) {
	s, ok := m.values[key].([]string)
	return s, ok
}

// Floats is an array of 32-bit floats (tokenizer.ggml.scores). Do not change it.
func (m *GGUFMeta) Floats(key string) ([]float32, bool) {
	s, ok := m.values[key].([]float32)
	return s, ok
}

// Ints is an array of integers of any width (tokenizer.ggml.token_type), copied.
func (m *GGUFMeta) Ints(key string) ([]int, bool) {
	switch v := m.values[key].(type) {
	case []int64:
		out := make([]int, len(v))
		for i, x := range v {
			out[i] = int(x)
		}
		return out, true
	case []uint64:
		out := make([]int, len(v))
		for i, x := range v {
			if x > math.MaxInt {
				return nil, false
			}
			out[i] = int(x)
		}
		return out, true
	}
	return nil, false
}

// ggufKinds are the bytes of a value by its type number: u8 i8 u16 i16 u32 i32 f32 bool string array u64 i64 f64. A
// string takes at least its length, an array its type and count.
var ggufKinds = [...]uint64{1, 1, 2, 2, 4, 4, 4, 1, 8, 12, 8, 8, 8}

// value reads one metadata value.
func (c *ggufCursor) value(kind uint32, key string, depth int) any {
	if c.err != nil {
		return nil
	}
	if kind >= uint32(len(ggufKinds)) {
		c.err = fmt.Errorf("metadata key %q is of the unknown type %d", key, kind)
		return nil
	}
	switch kind {
	case 8:
		return c.text(math.MaxInt64, "value of "+key)
	case 9:
		return c.array(key, depth)
	}
	b := c.take(ggufKinds[kind], "value of "+key)
	if b == nil {
		return nil
	}
	switch kind {
	case 0:
		return uint64(b[0])
	case 1:
		return int64(int8(b[0]))
	case 2:
		return uint64(le.Uint16(b))
	case 3:
		return int64(int16(le.Uint16(b)))
	case 4:
		return uint64(le.Uint32(b))
	case 5:
		return int64(int32(le.Uint32(b)))
	case 6:
		return float64(math.Float32frombits(le.Uint32(b)))
	case 7:
		if b[0] > 1 {
			c.err = fmt.Errorf("metadata key %q: %d is no boolean", key, b[0])
		}
		return b[0] == 1
	case 10:
		return le.Uint64(b)
	case 11:
		return int64(le.Uint64(b))
	}
	return math.Float64frombits(le.Uint64(b))
}

func (c *ggufCursor) array(key string, depth int) any {
	kind := c.u32("element type of " + key)
	if c.err == nil && (kind >= uint32(len(ggufKinds)) || kind == 9 && depth >= maxGGUFDepth) {
		c.err = fmt.Errorf("metadata key %q: array elements of type %d at depth %d", key, kind, depth)
	}
	if c.err != nil {
		return nil
	}
	n := c.count(ggufKinds[kind], "length of array "+key)
	if c.err != nil {
		return nil
	}
	switch kind {
	case 0, 2, 4, 10:
		return elements[uint64](c, kind, n, key, depth)
	case 1, 3, 5, 11:
		return elements[int64](c, kind, n, key, depth)
	case 6:
		out := make([]float32, n)
		for i := range out {
			out[i] = math.Float32frombits(c.u32(key))
		}
		return out
	case 7:
		return elements[bool](c, kind, n, key, depth)
	case 8:
		return elements[string](c, kind, n, key, depth)
	case 12:
		return elements[float64](c, kind, n, key, depth)
	}
	return elements[any](c, kind, n, key, depth)
}

func elements[T any](c *ggufCursor, kind uint32, n int, key string, depth int) []T {
	out := make([]T, 0, n)
	for range n {
		v, ok := c.value(kind, key, depth+1).(T)
		if c.err != nil || !ok {
			return nil
		}
		out = append(out, v)
	}
	return out
}
