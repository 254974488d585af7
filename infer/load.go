package infer

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"

	"bhive/adapters"
	"bhive/infer/checkpoint"
	"bhive/kernels"
)

// LoadConfig says how a checkpoint is kept on the device.
type LoadConfig struct {
	Format    kernels.Format        // of base weights, embedding and head; default: bfloat16
	Positions int                   // longest context, in tokens; default, and at most: the checkpoint's own
	BaseHash  string                // BaseHash of the checkpoint, where the caller has it; default: it is computed
	Progress  func(done, total int) // optional: called after each weight
}

// Load puts a checkpoint on a device, with the basis' A's stacked under the weights; a nil basis makes a model without adapters.
// The checkpoint is no longer needed afterwards. Errors: ErrCheckpoint, adapters.ErrBaseMismatch (a basis of another base),
// kernels.ErrNoMemory, and ctx's. Nothing stays allocated on error.
func Load(ctx context.Context, be kernels.Backend, cp *checkpoint.Checkpoint, basis *adapters.Basis, c LoadConfig) (*Model, error) {
	if c.Format == "" {
		c.Format = kernels.FormatBF16
	}
	if c.BaseHash == "" {
		c.BaseHash = BaseHash(cp)
	}
	if basis != nil && basis.BaseHash != c.BaseHash {
		return nil, fmt.Errorf("loading with the basis of base %.12s, this is %.12s: %w", basis.BaseHash, c.BaseHash, adapters.ErrBaseMismatch)
	}
	m, err := build(ctx, be, cp.Config(), checkpointSource{cp}, basis, c)
	if err != nil {
		return nil, err
	}
	m.BaseHash = c.BaseHash
	return m, nil
}

// checkpointSource is a checkpoint as build reads it.
type checkpointSource struct{ *checkpoint.Checkpoint }

func (s checkpointSource) Matrix(name string) (kernels.Matrix, error) { return s.Tensor(name) }

func (s checkpointSource) Has(name string) bool {
	_, err := s.Tensor(name)
	return err == nil
}

// BaseHash is what bases and adapter versions know a base model by: a SHA-256 (hex) over the architecture and over name, dtype, shape
// and bytes of each tensor that the model uses, in the order of the forward pass. The bytes count as stored: a
// quantised copy of a model is another base, a copy in other shards or under another file name is the same.
func BaseHash(cp *checkpoint.Checkpoint) string {
	h := sha256.New()
	cc := cp.Config()
	field := func(b []byte) {
		var n [8]byte
		binary.LittleEndian.PutUint64(n[:], uint64(len(b)))
		h.Write(n[:])
		h.Write(b)
	}
	io.WriteString(h, "bhive base 1\n")
	arch, err := json.Marshal(architecture(cc))
	if err != nil {
		panic("infer: " + err.Error())
	}
	field(arch)
	for _, name := range cc.TensorNames() {
		t, err := cp.Tensor(name)
		if err != nil {
			panic("infer: an open checkpoint lacks a tensor: " + err.Error())
		}
		field([]byte(fmt.Sprintf("%s %s %v", name, t.DType, t.Shape)))
		if t.InOrder() {
			field(t.Raw())
			continue
		}
		for i := range t.Rows() {
			field(t.RowBytes(i))
		}
	}
	return hex.EncodeToString(h.Sum(nil))
}

// architecture keeps of a configuration what changes a model's output.
func architecture(c checkpoint.Config) any {
	inv, factor := c.Rope.InvFreq()
	windows := make([]int, c.Layers)
	for l := range windows {
		windows[l] = c.Window(l)
	}
	return struct {
		Layers, Hidden, FeedForward, Heads, KVHeads, HeadDim, Vocab int
		NormEps                                                     float64
		Tied, QKNorm                                                bool
		Windows                                                     []int
		InvFreq                                                     []float32
		RopeFactor                                                  float32
	}{c.Layers, c.Hidden, c.FeedForward, c.Heads, c.KVHeads, c.HeadDim, c.Vocab, c.NormEps, c.TieEmbeddings, c.QKNorm, windows, inv, factor}
}
