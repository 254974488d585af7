package adapters

import (
	"encoding/binary"
	"fmt"
	"io"
	"slices"
	"strconv"

	"bhive/adapters/safetensors"
)

const basisFormat = "bhive.basis.1"

func basisTensor(layer int, s Site) string { return fmt.Sprintf("layers.%d.%v.lora_A", layer, s) }

// Save writes the basis as one safetensors file: layers.L.SITE.lora_A [R, in] bf16, and metadata.
func (b *Basis) Save(w io.Writer) error {
	meta := map[string]string{
		"format": basisFormat, "method": string(b.Method), "seed": strconv.FormatUint(b.Seed, 10),
		"rows": strconv.Itoa(b.R), "base": b.BaseHash, "fingerprint": b.Fingerprint(),
	}
	b.Geometry.describe(meta)
	var tensors []safetensors.Tensor
	for layer := range b.Geometry.Layers {
		for site := AttnIn; site < NumSites; site++ {
			tensors = append(tensors, safetensors.Tensor{Name: basisTensor(layer, site), DType: safetensors.BF16,
				Shape: []int{b.R, b.Geometry.In(site)}, Data: bf16Bytes(b.A(layer, site))})
		}
	}
	if err := safetensors.Write(w, tensors, meta); err != nil {
		return fmt.Errorf("writing the basis: %w", err)
	}
	return nil
}

// LoadBasis reads what Save wrote and checks shapes, values and fingerprint (ErrCorrupt).
func LoadBasis(r io.ReaderAt, size int64) (*Basis, error) {
	f, err := safetensors.Open(r, size)
	if err != nil {
		return nil, fmt.Errorf("reading the basis: %w: %w", ErrCorrupt, err)
	}
	meta := f.Metadata()
	bad := func(format string, a ...any) (*Basis, error) {
		return nil, fmt.Errorf("reading the basis: %w: "+format, append([]any{ErrCorrupt}, a...)...)
	}
	if meta["format"] != basisFormat {
		return bad("metadata field format is %q, not %q", meta["format"], basisFormat)
	}
	g, err := parseGeometry(meta)
	if err != nil {
		return bad("%w", err)
	}
	seed, err := strconv.ParseUint(meta["seed"], 10, 64)
	if err != nil {
		return bad("metadata field seed: %w", err)
	}
	rows, err := strconv.Atoi(meta["rows"])
	if err != nil || rows < 1 || rows > g.maxRows() {
		return bad("metadata field rows is %q", meta["rows"])
	}
	if want := g.Layers * int(NumSites); len(f.Names()) != want {
		return bad("%d tensors, not %d", len(f.Names()), want)
	}
	b := emptyBasis(Method(meta["method"]), seed, rows, g, meta["base"])
	for i := range b.rows {
		name := basisTensor(i/int(NumSites), Site(i%int(NumSites)))
		t, err := readTensor(f, name, rows, g.In(Site(i%int(NumSites))), safetensors.BF16)
		if err != nil {
			return bad("%w", err)
		}
		b.rows[i] = t.bits()
	}
	if got := b.Fingerprint(); got != meta["fingerprint"] {
		return bad("the fingerprint is %s, the metadata says %s", got, meta["fingerprint"])
	}
	return b, nil
}

func (g Geometry) describe(meta map[string]string) {
	for k, v := range g.fields() {
		meta[k] = strconv.Itoa(*v)
	}
}

func (g *Geometry) fields() map[string]*int {
	return map[string]*int{"layers": &g.Layers, "hidden": &g.Hidden, "q_dim": &g.QDim, "kv_dim": &g.KVDim, "feed_forward": &g.FeedForward}
}

func parseGeometry(meta map[string]string) (Geometry, error) {
	var g Geometry
	for k, v := range g.fields() {
		n, err := strconv.Atoi(meta[k])
		if err != nil {
			return g, fmt.Errorf("metadata field %s is %q, not a number", k, meta[k])
		}
		*v = n
	}
	return g, g.Validate()
}

// tensor is a matrix read from outside, widened.
type tensor struct {
	values []float32
	exact  bool // bf16 holds every value
}

func (t tensor) bits() []uint16 {
	out := make([]uint16, len(t.values))
	for i, v := range t.values {
		out[i] = toBF16(v)
	}
	return out
}

// readTensor reads a matrix of the given shape and of one of the given dtypes, with finite values.
func readTensor(f *safetensors.File, name string, rows, cols int, dtypes ...safetensors.DType) (tensor, error) {
	info, ok := f.Info(name)
	if !ok {
		return tensor{}, fmt.Errorf("tensor %s is missing", name)
	}
	if len(info.Shape) != 2 || info.Shape[0] != rows || info.Shape[1] != cols {
		return tensor{}, fmt.Errorf("tensor %s has shape %v, not [%d, %d]", name, info.Shape, rows, cols)
	}
	if !slices.Contains(dtypes, info.DType) {
		return tensor{}, fmt.Errorf("tensor %s is %s, not one of %v", name, info.DType, dtypes)
	}
	raw, err := f.Tensor(name)
	if err != nil {
		return tensor{}, fmt.Errorf("tensor %s: %w", name, err)
	}
	t := tensor{values: make([]float32, rows*cols), exact: true}
	for i := range t.values {
		v := &t.values[i]
		switch info.DType {
		case safetensors.BF16:
			*v = fromBF16(binary.LittleEndian.Uint16(raw.Data[2*i:]))
		case safetensors.F16:
			*v = fromF16(binary.LittleEndian.Uint16(raw.Data[2*i:]))
		case safetensors.F32:
			*v = fromF32(raw.Data[4*i:])
		default:
			panic("adapters: readTensor of " + string(info.DType))
		}
		if !finite(*v) {
			return tensor{}, fmt.Errorf("tensor %s: element [%d, %d] is %v", name, i/cols, i%cols, *v)
		}
		t.exact = t.exact && fromBF16(toBF16(*v)) == *v
	}
	return t, nil
}
