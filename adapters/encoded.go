package adapters

import (
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"

	"bhive/adapters/safetensors"
)

// encoded is a blob in memory that is being encoded, in the file's order: its beginning can be read while its end is not there yet.
type encoded struct {
	of     *Weights
	file   []byte
	parts  []encodedPart // in the file's order, after the header
	values [][]byte      // of module layer·NumProjs + proj; nil where it has no tensor
}

// encodedPart is a module in the file.
type encodedPart struct {
	module int
	end    int           // offset of its last byte's end
	done   chan struct{} // closed when its bytes, or err, are there
	err    error
}

// encodeBlob begins to encode a B, which stays unchanged until wait has returned.
func encodeBlob(b *Weights, basisDigest, baseHash string) (*encoded, error) {
	float := func(v float64) string { return strconv.FormatFloat(v, 'g', -1, 64) }
	meta := map[string]string{"format": blobFormat, "rank": strconv.Itoa(b.Rank), "alpha": float(b.Alpha),
		"scaling": float(b.Scaling), "basis": basisDigest, "base": baseHash}
	b.Geometry.describe(meta)
	e := &encoded{of: b, values: make([][]byte, b.Geometry.Layers*int(NumProjs))}
	filled := make([]bool, len(e.values))
	_ = together(len(filled), func(n int) error {
		filled[n] = slices.ContainsFunc(b.module(n), func(v float32) bool { return v != 0 })
		return nil
	})
	all := !slices.Contains(filled, true)
	for n := range filled {
		if all || filled[n] {
			e.parts = append(e.parts, encodedPart{module: n, done: make(chan struct{})})
		}
	}
	slices.SortFunc(e.parts, func(x, y encodedPart) int { return strings.Compare(tensorOf(x.module), tensorOf(y.module)) })
	tensors := make([]safetensors.Tensor, len(e.parts))
	for i, part := range e.parts {
		_, p := moduleOf(part.module)
		tensors[i] = safetensors.Tensor{Name: tensorOf(part.module), DType: safetensors.BF16, Shape: []int{b.Geometry.Out(p), b.Rank}}
	}
	file, values, err := safetensors.Lay(tensors, meta)
	if err != nil {
		return nil, fmt.Errorf("encoding an adapter: %w", err)
	}
	e.file = file
	end := len(file)
	for i := len(values) - 1; i >= 0; i-- {
		e.values[e.parts[i].module], e.parts[i].end = values[i], end
		end -= len(values[i])
	}
	go func() {
		_ = together(len(e.parts), func(i int) error {
			part := &e.parts[i]
			defer close(part.done)
			part.err = e.encode(part.module)
			return nil
		})
	}()
	return e, nil
}

// encode rounds a module.
func (e *encoded) encode(n int) error {
	values := e.of.module(n)
	if i := roundBF16(e.values[n], values); i >= 0 {
		return fmt.Errorf("encoding an adapter: %w: %s: element [%d, %d] is %v", ErrCorrupt, tensorOf(n), i/e.of.Rank, i%e.of.Rank, values[i])
	}
	return nil
}

// wait waits until all is encoded.
func (e *encoded) wait() (err error) {
	for i := range e.parts {
		part := &e.parts[i]
		if <-part.done; err == nil {
			err = part.err
		}
	}
	return err
}

// reader reads the file, waiting for what is not encoded yet.
func (e *encoded) reader() io.Reader { return &encodedReader{e: e} }

type encodedReader struct {
	e        *encoded
	at, part int // the next byte; the part that is waited for next
	ready    int // bytes that may be read
}

func (r *encodedReader) Read(p []byte) (int, error) {
	if r.ready == 0 {
		r.ready = len(r.e.file)
		if len(r.e.parts) > 0 {
			r.ready = r.e.parts[0].end - len(r.e.values[r.e.parts[0].module])
		}
	}
	for ; r.at == r.ready; r.part++ {
		if r.part == len(r.e.parts) {
			return 0, io.EOF
		}
		part := &r.e.parts[r.part]
		if <-part.done; part.err != nil {
			return 0, part.err
		}
		r.ready = part.end
	}
	n := copy(p, r.e.file[r.at:r.ready])
	r.at += n
	return n, nil
}

// pack is PackInto of what the blob, once it is read back, decodes to, and reports whether all of it is finite. All must be encoded.
func (e *encoded) pack(out []byte, d DType) bool {
	w := e.of
	s := float32(w.Scaling)
	return together(len(e.values), func(n int) error {
		layer, p := moduleOf(n)
		to, from := out[w.Rank*w.Geometry.OutOffset(layer, p)*d.Size():], e.values[n]
		n = w.Rank * w.Geometry.Out(p)
		for i := range n {
			var v float32
			if from != nil {
				v = fromBF16(binary.LittleEndian.Uint16(from[2*i:]))
			}
			v *= s
			if d == BF16 {
				binary.LittleEndian.PutUint16(to[2*i:], toBF16(v))
			} else {
				binary.LittleEndian.PutUint32(to[4*i:], math.Float32bits(v))
			}
		}
		if !packedFinite(to[:n*d.Size()], d) {
			return ErrCorrupt
		}
		return nil
	}) == nil
}

// moduleOf is a module by its number.
func moduleOf(n int) (layer int, p Proj) { return n / int(NumProjs), Proj(n % int(NumProjs)) }

// tensorOf is the name of a module's tensor.
func tensorOf(n int) string { return blobTensor(moduleOf(n)) }

func (w *Weights) module(n int) []float32 { return w.Module(moduleOf(n)) }
