package infer

import (
	"context"
	"fmt"
	"hash/fnv"
	"math"
	"slices"
	"strconv"
	"strings"

	"bhive/adapters"
	"bhive/infer/checkpoint"
	"bhive/kernels"
)

// RandomModels are the shapes that LoadRandom knows, by name.
func RandomModels() []string {
	var names []string
	for n := range randomShapes {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

var randomShapes = map[string]checkpoint.Config{
	"tiny":         {Layers: 2, Hidden: 64, FeedForward: 160, Heads: 4, KVHeads: 2, HeadDim: 16, Vocab: 4096, MaxPositions: 1024, TieEmbeddings: true},
	"smollm2-135m": {Layers: 30, Hidden: 576, FeedForward: 1536, Heads: 9, KVHeads: 3, HeadDim: 64, Vocab: 49152, MaxPositions: 8192, TieEmbeddings: true},
	"llama-3.2-1b": {Layers: 16, Hidden: 2048, FeedForward: 8192, Heads: 32, KVHeads: 8, HeadDim: 64, Vocab: 128256, MaxPositions: 8192, TieEmbeddings: true},
	"llama-3-8b":   {Layers: 32, Hidden: 4096, FeedForward: 14336, Heads: 32, KVHeads: 8, HeadDim: 128, Vocab: 128256, MaxPositions: 8192},
	"llama-3-70b":  {Layers: 80, Hidden: 8192, FeedForward: 28672, Heads: 64, KVHeads: 8, HeadDim: 128, Vocab: 128256, MaxPositions: 8192},
}

// RandomConfig is the architecture of a random model: a name of RandomModels, or NAME:LAYERS for its first layers.
func RandomConfig(name string) (checkpoint.Config, error) {
	shape, layers, cut := strings.Cut(name, ":")
	c, ok := randomShapes[shape]
	if !ok {
		return c, fmt.Errorf("%w: no random model %q; there are %s", ErrCheckpoint, shape, strings.Join(RandomModels(), ", "))
	}
	if cut {
		n, err := strconv.Atoi(layers)
		if err != nil || n < 1 || n > c.Layers {
			return c, fmt.Errorf("%w: random model %q: the layers after the colon are no number from 1 to %d", ErrCheckpoint, name, c.Layers)
		}
		c.Layers = n
	}
	c.Family, c.NormEps, c.BOS, c.Pad, c.EOS = checkpoint.Llama, 1e-5, -1, -1, nil
	c.Rope = checkpoint.Rope{Type: checkpoint.RopeDefault, Dim: c.HeadDim, Theta: 500000}
	return c, nil
}

// FitRandom is the name of a random model with as many of its layers as fit in bytes, with A's of that many rows and bfloat16 weights: the
// name itself where it fits or says its layers.
func FitRandom(name string, rows int, bytes int64) (string, error) {
	c, err := RandomConfig(name)
	if err != nil || strings.Contains(name, ":") {
		return name, err
	}
	f := Footprint{Config: c, Rows: rows, WeightBits: 16, WorkBytes: 2}
	all := c.Layers
	for ; f.Config.Layers > 1 && f.Bytes() > bytes; f.Config.Layers-- {
	}
	if f.Config.Layers < all {
		name = fmt.Sprintf("%s:%d", name, f.Config.Layers)
	}
	return name, nil
}

// RandomHash is the BaseHash of a random model.
func RandomHash(name string, seed uint64) string { return fmt.Sprintf("random:%s:%d", name, seed) }

// LoadRandom makes a model of a known shape with random weights from a seed: for benchmarks without a download. A device that can makes them
// itself, and no copy exists on the host. Errors are Load's.
func LoadRandom(ctx context.Context, be kernels.Backend, name string, seed uint64, basis *adapters.Basis, c LoadConfig) (*Model, error) {
	cc, err := RandomConfig(name)
	if err != nil {
		return nil, err
	}
	if c.Format == "" {
		c.Format = kernels.FormatBF16
	}
	m, err := build(ctx, be, cc, randomSource{cc, seed}, basis, c)
	if err != nil {
		return nil, err
	}
	m.BaseHash = RandomHash(name, seed)
	return m, nil
}

// randomSource makes matrices of N(0, 1/in)-like noise, and norms of ones.
type randomSource struct {
	config checkpoint.Config
	seed   uint64
}

func (s randomSource) Has(name string) bool { return s.config.TensorShape(name) != nil }

func (s randomSource) Matrix(name string) (kernels.Matrix, error) {
	shape := s.config.TensorShape(name)
	if shape == nil {
		return nil, fmt.Errorf("no tensor %s", name)
	}
	if len(shape) == 1 {
		return ones(shape[0]), nil
	}
	h := fnv.New64a()
	h.Write([]byte(name))
	return kernels.Random{R: shape[0], C: shape[1], Seed: s.seed ^ h.Sum64(), Scale: float32(1 / math.Sqrt(float64(shape[1])))}, nil
}

// ones is a row of ones.
type ones int

func (n ones) Rows() int { return 1 }
func (n ones) Cols() int { return int(n) }
func (n ones) Row(_ int, dst []float32) {
	for i := range dst[:n] {
		dst[i] = 1
	}
}
