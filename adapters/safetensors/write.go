package safetensors

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"
)

// ErrTensor is returned by Write, before anything is written, for tensors or metadata that no file can hold: a bad
// name, shape or dtype, a name used twice, or a byte count that the shape does not explain.
var ErrTensor = errors.New("tensor cannot be written")

// Tensor is a tensor with its values, little-endian and row-major.
type Tensor struct {
	Name  string
	DType DType
	Shape []int
	Data  []byte
	// From gives the bytes where Data is nil, so that a large tensor need not be in memory. Write reads exactly the
	// bytes of the shape from it.
	From io.Reader
}

// Write streams a file to w: wider dtypes first, then by name, metadata by key. Neither tensors nor metadata is
// changed. A nil metadata writes none.
func Write(w io.Writer, tensors []Tensor, metadata map[string]string) error {
	order := ordered(tensors)
	header, sizes, err := header(order, metadata)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrTensor, err)
	}
	if _, err := w.Write(header); err != nil {
		return fmt.Errorf("writing the header: %w", err)
	}
	for i, t := range order {
		if t.Data != nil || sizes[i] == 0 {
			_, err = w.Write(t.Data)
		} else {
			_, err = io.CopyN(w, t.From, sizes[i])
		}
		if err != nil {
			return fmt.Errorf("writing tensor %q: %w", t.Name, err)
		}
	}
	return nil
}

// Head is the beginning of the file that Write would write of the tensors, up to their values, which follow without gaps in Write's order. Data and From are
// not looked at. ErrTensor as Write's.
func Head(tensors []Tensor, metadata map[string]string) ([]byte, error) {
	order := ordered(tensors)
	for i := range order {
		order[i].Data, order[i].From = nil, strings.NewReader("")
	}
	head, _, err := header(order, metadata)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrTensor, err)
	}
	return head, nil
}

// ordered are the tensors as they lie in a file.
func ordered(tensors []Tensor) []Tensor {
	order := slices.Clone(tensors)
	slices.SortStableFunc(order, Tensor.compare)
	return order
}

func (t Tensor) compare(o Tensor) int {
	if t.DType != o.DType {
		return o.DType.order() - t.DType.order()
	}
	return strings.Compare(t.Name, o.Name)
}

// header is the length word and the padded header for the tensors in this order, with their byte counts.
func header(order []Tensor, metadata map[string]string) ([]byte, []int64, error) {
	var b bytes.Buffer
	b.Write(make([]byte, 8))
	b.WriteByte('{')
	for k, v := range metadata {
		if !utf8.ValidString(k) || !utf8.ValidString(v) {
			return nil, nil, fmt.Errorf("%s: %q: %q is not UTF-8", metadataKey, k, v)
		}
	}
	if metadata != nil {
		text, err := encode(metadata)
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", metadataKey, err)
		}
		b.WriteString(`"` + metadataKey + `":` + text)
	}
	sizes, seen, at := make([]int64, len(order)), map[string]bool{}, int64(0)
	for i, t := range order {
		if t.Name == metadataKey || seen[t.Name] {
			return nil, nil, fmt.Errorf("name %q is taken", t.Name)
		}
		if !utf8.ValidString(t.Name) {
			return nil, nil, fmt.Errorf("name %q is not UTF-8", t.Name)
		}
		seen[t.Name] = true
		size, err := t.size()
		if err != nil {
			return nil, nil, fmt.Errorf("%q: %w", t.Name, err)
		}
		shape := t.Shape
		if shape == nil {
			shape = []int{}
		}
		name, err := encode(t.Name)
		if err != nil {
			return nil, nil, err
		}
		entry, err := encode(struct {
			DType   DType    `json:"dtype"`
			Shape   []int    `json:"shape"`
			Offsets [2]int64 `json:"data_offsets"`
		}{t.DType, shape, [2]int64{at, at + size}})
		if err != nil {
			return nil, nil, err
		}
		if b.Len() > 9 {
			b.WriteByte(',')
		}
		b.WriteString(name + ":" + entry)
		sizes[i], at = size, at+size
	}
	b.WriteByte('}')
	for b.Len()%8 != 0 {
		b.WriteByte(' ')
	}
	if b.Len()-8 > MaxHeader {
		return nil, nil, fmt.Errorf("header of %d bytes, at most %d are allowed", b.Len()-8, MaxHeader)
	}
	binary.LittleEndian.PutUint64(b.Bytes(), uint64(b.Len()-8))
	return b.Bytes(), sizes, nil
}

// size is the tensor's byte count, checked against what it holds.
func (t Tensor) size() (int64, error) {
	if t.DType.Size() == 0 {
		return 0, fmt.Errorf("dtype %q is unknown", t.DType)
	}
	dims := make([]uint64, len(t.Shape))
	for i, s := range t.Shape {
		if s < 0 {
			return 0, fmt.Errorf("shape %v is negative", t.Shape)
		}
		dims[i] = uint64(s)
	}
	n, _, err := byteCount(t.DType, dims)
	switch {
	case err != nil:
		return 0, err
	case t.Data == nil && t.From == nil && n > 0:
		return 0, errors.New("has neither Data nor From")
	case (t.Data != nil || t.From == nil) && uint64(len(t.Data)) != n:
		return 0, fmt.Errorf("%s%v takes %d bytes, got %d", t.DType, t.Shape, n, len(t.Data))
	}
	return int64(n), nil
}

// encode is v as JSON on one line, with <, > and & as they are; map keys come sorted.
func encode(v any) (string, error) {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return "", err
	}
	return strings.TrimSuffix(b.String(), "\n"), nil
}

// Size is the bytes that Write would write; it reads nothing. ErrTensor as Write's.
func Size(tensors []Tensor, metadata map[string]string) (int64, error) {
	head, sizes, err := header(ordered(tensors), metadata)
	if err != nil {
		return 0, fmt.Errorf("%w: %w", ErrTensor, err)
	}
	n := int64(len(head))
	for _, s := range sizes {
		n += s
	}
	return n, nil
}
