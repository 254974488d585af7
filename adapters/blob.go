package adapters

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math"
	"runtime"
	"strconv"
	"strings"

	"bhive/adapters/safetensors"

	"golang.org/x/sync/errgroup"
)

const (
	blobFormat = "bhive.adapter.1"
	// MaxRank is the largest rank that a blob may state.
	MaxRank = 4096
)

// Meta is what a blob's metadata says beside its tensors.
type Meta struct {
	Geometry    Geometry
	Rank        int
	Alpha       float64
	Scaling     float64
	BasisDigest string // Basis.RowsDigest(Rank)
	BaseHash    string
}

func blobTensor(layer int, p Proj) string { return fmt.Sprintf("layers.%d.%v.lora_B", layer, p) }

// EncodeBlob writes the blob of a version: a safetensors file with a tensor layers.L.PROJ.lora_B [out, r] bf16
// (rounded to nearest even) for every module that is not all zeros (all modules where every one is), and the
// metadata. Values that bf16 cannot hold are refused with ErrCorrupt, naming the module.
func EncodeBlob(w io.Writer, b *Weights, basisDigest, baseHash string) error {
	return encodingOf(b).Write(w, basisDigest, baseHash)
}

// DecodeBlob reads a blob and checks each tensor's name, shape, dtype (BF16 or F32) and that its values are
// finite. Modules without a tensor are zeros; a blob without any tensor is refused. Errors: ErrCorrupt,
// ErrBaseMismatch (another geometry), ErrRank; each names the tensor or field.
func DecodeBlob(r io.ReaderAt, size int64, g Geometry) (*Weights, Meta, error) {
	var meta Meta
	fail := func(kind error, format string, a ...any) (*Weights, Meta, error) {
		return nil, meta, fmt.Errorf("reading an adapter: %w: "+format, append([]any{kind}, a...)...)
	}
	f, err := safetensors.Open(r, size)
	if err != nil {
		return fail(ErrCorrupt, "%w", err)
	}
	m := f.Metadata()
	if m["format"] != blobFormat {
		return fail(ErrCorrupt, "metadata field format is %q, not %q", m["format"], blobFormat)
	}
	if meta.Geometry, err = parseGeometry(m); err != nil {
		return fail(ErrCorrupt, "%w", err)
	}
	if meta.Geometry != g {
		return fail(ErrBaseMismatch, "its base has sizes %+v, this one %+v", meta.Geometry, g)
	}
	if meta.Rank, err = strconv.Atoi(m["rank"]); err != nil {
		return fail(ErrCorrupt, "metadata field rank is %q, not a number", m["rank"])
	}
	if meta.Rank < 1 || meta.Rank > MaxRank {
		return fail(ErrRank, "metadata field rank is %d, not in 1 … %d", meta.Rank, MaxRank)
	}
	for name, v := range map[string]*float64{"alpha": &meta.Alpha, "scaling": &meta.Scaling} {
		if *v, err = strconv.ParseFloat(m[name], 64); err != nil || math.IsNaN(*v) || math.IsInf(*v, 0) {
			return fail(ErrCorrupt, "metadata field %s is %q, not a finite number", name, m[name])
		}
	}
	meta.BasisDigest, meta.BaseHash = m["basis"], m["base"]
	if len(f.Names()) == 0 {
		return fail(ErrCorrupt, "it has no tensors")
	}
	// Before anything is allocated by the stated rank, the tensors must bear it out.
	for _, name := range f.Names() {
		layer, p, ok := parseBlobTensor(name, g)
		if !ok {
			return fail(ErrCorrupt, "unknown tensor %s", strconv.Quote(name))
		}
		info, _ := f.Info(name)
		if len(info.Shape) != 2 || info.Shape[0] != g.Out(p) || info.Shape[1] != meta.Rank {
			return fail(ErrCorrupt, "tensor %s has shape %v, not [%d, %d]", blobTensor(layer, p), info.Shape, g.Out(p), meta.Rank)
		}
	}
	w := NewWeights(g, meta.Rank, meta.Alpha)
	w.Scaling = meta.Scaling
	names := f.Names()
	if err := together(len(names), func(i int) error {
		layer, p, _ := parseBlobTensor(names[i], g)
		t, err := readTensor(f, names[i], g.Out(p), meta.Rank, safetensors.BF16, safetensors.F32)
		if err != nil {
			return err
		}
		copy(w.Module(layer, p), t.values)
		return nil
	}); err != nil {
		return fail(ErrCorrupt, "%w", err)
	}
	return w, meta, nil
}

// together runs f(0) … f(n−1) on half of the processors, since requests are served on them too, and returns the first error by number.
func together(n int, f func(i int) error) error {
	errs := make([]error, n)
	var group errgroup.Group
	group.SetLimit(max(1, runtime.GOMAXPROCS(0)/2))
	for i := range n {
		group.Go(func() error {
			errs[i] = f(i)
			return nil
		})
	}
	_ = group.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func parseBlobTensor(name string, g Geometry) (int, Proj, bool) {
	parts := strings.Split(name, ".")
	if len(parts) != 4 || parts[0] != "layers" || parts[3] != "lora_B" {
		return 0, 0, false
	}
	layer, err := strconv.Atoi(parts[1])
	p, ok := ParseProj(parts[2])
	if err != nil || !ok || layer < 0 || layer >= g.Layers || blobTensor(layer, p) != name {
		return 0, 0, false
	}
	return layer, p, true
}

// loadVersion reads a version's B, verifies its hash and that the blob says what the version does.
func loadVersion(ctx context.Context, s BlobOpener, v Version, g Geometry) (*Weights, Meta, error) {
	fail := func(err error) (*Weights, Meta, error) {
		return nil, Meta{}, fmt.Errorf("loading %s: %w", v.Ref(), err)
	}
	blob, err := s.OpenBlob(ctx, v.Tenant, v.SHA256)
	if err != nil {
		return fail(err)
	}
	defer blob.Close()
	data := make([]byte, blob.Size())
	if n, err := blob.ReadAt(data, 0); n < len(data) {
		return fail(fmt.Errorf("%w: %w", ErrStoreUnavailable, err))
	}
	if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != v.SHA256 {
		return fail(fmt.Errorf("%w: the blob's SHA-256 is %x, not %s", ErrCorrupt, sum, v.SHA256))
	}
	w, meta, err := DecodeBlob(bytes.NewReader(data), int64(len(data)), g)
	if err != nil {
		return fail(err)
	}
	if meta.Rank != v.Rank || meta.Scaling != v.Scaling || meta.BasisDigest != v.BasisDigest || meta.BaseHash != v.BaseHash {
		return fail(fmt.Errorf("%w: the blob's metadata does not agree with the version's", ErrCorrupt))
	}
	return w, meta, nil
}
