package safetensors

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/bits"
	"slices"
	"strings"
	"unicode/utf8"
)

// MaxHeader is the longest header that is read or written, in bytes (the reference implementation's limit).
const MaxHeader = 100_000_000

const metadataKey = "__metadata__"

var (
	// ErrFormat is returned by Open for a file that is not well-formed: truncated, lying or of an unknown dtype.
	ErrFormat = errors.New("malformed safetensors file")
	// ErrNoTensor is returned by File.Tensor for a name that the file does not hold.
	ErrNoTensor = errors.New("no such tensor")
)

// Info describes one tensor of a file.
type Info struct {
	Name   string
	DType  DType
	Shape  []int // row-major, last dimension contiguous; empty for a scalar
	Offset int64 // bytes from the start of the file
	Size   int64 // bytes
}

// File is an open safetensors file. It is safe for concurrent use if its reader is.
type File struct {
	r        io.ReaderAt
	infos    map[string]Info
	names    []string
	metadata map[string]string
}

// Open reads and checks the header of a file of size bytes. The reader must stay usable as long as File.Tensor is
// called; Open does not close it. Errors wrap ErrFormat and name the tensor, but for those of the reader.
func Open(r io.ReaderAt, size int64) (*File, error) { return OpenWithin(r, size, MaxHeader) }

// OpenWithin is Open with a header of at most so many bytes.
func OpenWithin(r io.ReaderAt, size int64, maxHeader int) (*File, error) {
	if size < 8 {
		return nil, fmt.Errorf("%w: %d bytes are too few for the header length", ErrFormat, size)
	}
	var word [8]byte
	if _, err := r.ReadAt(word[:], 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("reading the header length: %w", err)
	}
	n := binary.LittleEndian.Uint64(word[:])
	switch {
	case n > uint64(maxHeader):
		return nil, fmt.Errorf("%w: header of %d bytes, at most %d are allowed", ErrFormat, n, maxHeader)
	case int64(n) > size-8:
		return nil, fmt.Errorf("%w: header of %d bytes in a file of %d", ErrFormat, n, size)
	}
	header := make([]byte, n)
	if _, err := io.ReadFull(io.NewSectionReader(r, 8, int64(n)), header); err != nil {
		return nil, fmt.Errorf("reading the header: %w", err)
	}
	f := &File{r: r, infos: map[string]Info{}}
	if err := f.parse(header, 8+int64(n), size); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	for name := range f.infos {
		f.names = append(f.names, name)
	}
	slices.Sort(f.names)
	return f, nil
}

// parse fills the file from its header; data begins at base and ends at size.
func (f *File) parse(header []byte, base, size int64) error {
	if !utf8.Valid(header) {
		return errors.New("header is not UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(header))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return errors.New("header is not a JSON object")
	}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return fmt.Errorf("header: %w", err)
		}
		key := t.(string) // the decoder admits nothing else as a key
		if key == metadataKey {
			if f.metadata != nil {
				return fmt.Errorf("%s occurs twice", metadataKey)
			}
			if err := d.Decode(&f.metadata); err != nil {
				return fmt.Errorf("%s: %w", metadataKey, err)
			}
			if f.metadata == nil {
				f.metadata = map[string]string{}
			}
			continue
		}
		var e struct {
			DType   *DType    `json:"dtype"`
			Shape   *[]uint64 `json:"shape"`
			Offsets *[]uint64 `json:"data_offsets"`
		}
		if err := d.Decode(&e); err != nil {
			return fmt.Errorf("tensor %q: %w", key, err)
		}
		if _, ok := f.infos[key]; ok {
			return fmt.Errorf("tensor %q occurs twice", key)
		}
		switch {
		case e.DType == nil:
			return fmt.Errorf("tensor %q: dtype is missing", key)
		case e.DType.Size() == 0:
			return fmt.Errorf("tensor %q: dtype %q is unknown", key, *e.DType)
		case e.Shape == nil:
			return fmt.Errorf("tensor %q: shape is missing", key)
		case e.Offsets == nil || len(*e.Offsets) != 2:
			return fmt.Errorf("tensor %q: data_offsets must be two numbers", key)
		}
		begin, end := (*e.Offsets)[0], (*e.Offsets)[1]
		if begin > end || end > uint64(size-base) {
			return fmt.Errorf("tensor %q: data_offsets [%d, %d] outside the %d bytes of data", key, begin, end, size-base)
		}
		want, shape, err := byteCount(*e.DType, *e.Shape)
		if err != nil {
			return fmt.Errorf("tensor %q: %w", key, err)
		}
		if want != end-begin {
			return fmt.Errorf("tensor %q: %s%v takes %d bytes, data_offsets [%d, %d] hold %d", key, *e.DType, shape, want, begin, end, end-begin)
		}
		f.infos[key] = Info{Name: key, DType: *e.DType, Shape: shape, Offset: base + int64(begin), Size: int64(want)}
	}
	if _, err := d.Token(); err != nil {
		return fmt.Errorf("header: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("header goes on after its object")
	}
	return f.covered(base, size)
}

// covered checks that the tensors fill the data section without gap or overlap.
func (f *File) covered(base, size int64) error {
	all := make([]Info, 0, len(f.infos))
	for _, t := range f.infos {
		all = append(all, t)
	}
	slices.SortFunc(all, func(a, b Info) int {
		if a.Offset != b.Offset {
			return cmp64(a.Offset, b.Offset)
		}
		if a.Size != b.Size {
			return cmp64(a.Size, b.Size)
		}
		return strings.Compare(a.Name, b.Name)
	})
	at := base
	for _, t := range all {
		if t.Offset < at {
			return fmt.Errorf("tensor %q overlaps the one before it by %d bytes", t.Name, at-t.Offset)
		}
		if t.Offset > at {
			return fmt.Errorf("tensor %q leaves a gap of %d bytes before it", t.Name, t.Offset-at)
		}
		at += t.Size
	}
	if at != size {
		return fmt.Errorf("the file has %d bytes after the last tensor", size-at)
	}
	return nil
}

func cmp64(a, b int64) int {
	if a < b {
		return -1
	}
	return 1
}

// byteCount is the bytes of a tensor, with the shape as ints.
func byteCount(d DType, shape []uint64) (uint64, []int, error) {
	if len(shape) > 16 {
		return 0, nil, fmt.Errorf("shape has %d dimensions, at most 16 are allowed", len(shape))
	}
	n, dims := uint64(d.Size()), make([]int, len(shape))
	for i, s := range shape {
		hi, lo := bits.Mul64(n, s)
		if hi != 0 || lo > math.MaxInt64 || s > math.MaxInt {
			return 0, nil, fmt.Errorf("shape %v overflows", shape)
		}
		n, dims[i] = lo, int(s)
	}
	return n, dims, nil
}

// Names lists the tensors in order of their names.
func (f *File) Names() []string { return slices.Clone(f.names) }

// Metadata is the file's own map of strings, nil where it has none. It belongs to the file: do not change it.
func (f *File) Metadata() map[string]string { return f.metadata }

// Info describes the tensor of that name.
func (f *File) Info(name string) (Info, bool) {
	t, ok := f.infos[name]
	return t, ok
}

// Tensor reads the tensor of that name; ErrNoTensor if there is none.
func (f *File) Tensor(name string) (Tensor, error) {
	t, ok := f.infos[name]
	if !ok {
		return Tensor{}, fmt.Errorf("%w: %q", ErrNoTensor, name)
	}
	data := make([]byte, t.Size)
	if _, err := io.ReadFull(io.NewSectionReader(f.r, t.Offset, t.Size), data); err != nil {
		return Tensor{}, fmt.Errorf("reading tensor %q: %w", name, err)
	}
	return Tensor{Name: name, DType: t.DType, Shape: slices.Clone(t.Shape), Data: data}, nil
}
