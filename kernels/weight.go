package kernels

// Format is how a backend keeps a base weight.
type Format string

const (
	FormatF32  Format = "float32"
	FormatBF16 Format = "bfloat16"
	FormatInt8 Format = "int8" // symmetric blocks of 32 along the input, one scale a block
)

// Matrix is a host matrix that a weight is filled from, row by row; a checkpoint's tensor is one.
type Matrix interface {
	Rows() int
	Cols() int
	// Row writes row i, widened to float32, into dst[:Cols()].
	Row(i int, dst []float32)
}

// Random is a matrix of uniform noise with mean 0 and standard deviation Scale, from Seed and an element's place alone: weights without a
// checkpoint. A device may make it by itself instead of asking for rows.
type Random struct {
	R, C  int
	Seed  uint64
	Scale float32
}

func (m Random) Rows() int { return m.R }
func (m Random) Cols() int { return m.C }

// Row writes row i: element n of the matrix is scale·√12·(u − ½), u the upper 24 bits of a mix of seed and n.
func (m Random) Row(i int, dst []float32) {
	for j := range m.C {
		z := m.Seed*0x9E3779B97F4A7C15 + uint64(i*m.C+j)*0xD1B54A32D192ED03
		z = (z ^ z>>30) * 0xBF58476D1CE4E5B9
		z = (z ^ z>>27) * 0x94D049BB133111EB
		z ^= z >> 31
		dst[j] = (float32(z>>40)/(1<<24) - 0.5) * 3.4641016 * m.Scale
	}
}

// WeightSpec describes a fused weight [W; A]: the parts stacked in order, then A.
type WeightSpec struct {
	Parts  []Matrix
	A      Matrix // [R, in], or nil: no adapters at this weight (embedding, head)
	Format Format // of W; A keeps the working dtype
	// Shard says which part of the weight this device holds under tensor parallelism; the zero Shard is the whole.
	Shard Shard
}

// Shard is a contiguous part of a weight: of its output rows (column-parallel: A repeated, B split) or of its input columns
// (row-parallel: [Y, z] summed over devices by [Backend.Reduce]).
type Shard struct {
	Index, Count int
	ByInput      bool
}

// Weight is a frozen weight on a device.
type Weight interface {
	Out() int // rows of W
	In() int
	R() int // rows of A, 0 without
	Bytes() int64
}

// KVSpec describes a paged KV cache: for each layer, K and V of [Blocks·P, Hkv, D] in the working dtype.
type KVSpec struct {
	Layers, Blocks, BlockTokens, KVHeads, HeadDim int
	// In is memory for it, of the working dtype [1, Elements], that stays its owner's; absent: the cache has its own.
	In Tensor
}

// Elements of K and V in all layers.
func (s KVSpec) Elements() int {
	return 2 * s.Layers * s.Blocks * s.BlockTokens * s.KVHeads * s.HeadDim
}

// KVCache is the memory of K and V on a device. Slot s of the slot mapping is token s%P of block s/P.
type KVCache interface {
	Spec() KVSpec
	Bytes() int64 // of its own
}

// AdapterTable is the device table of {pointer, rank} by adapter slot.
type AdapterTable interface {
	Slots() int
}

// BRef names one site's B for all adapters of a table: the B of adapter slot a is the matrix [Out, rank(a)] at element
// rank(a)·Offset of its block, already multiplied by the adapter's scaling. Offset counts the output rows of the sites before it.
type BRef struct {
	Table  AdapterTable
	Offset int
	Out    int
}

// LaneTable is the device table of training lanes: {gradient block, rank, scaling}, laid out as B's blocks are, in float32.
type LaneTable interface {
	Lanes() int
}

// GradRef names one site's dB for all lanes of a table, as BRef does for B.
type GradRef struct {
	Table  LaneTable
	Offset int
	Out    int
}

// SamplerState is what sampling remembers between steps, a row a running sequence; written by Upload when the sequence starts.
type SamplerState struct {
	Counts Tensor // I32 [rows, V]: times generated, plus SeenInPrompt where the prompt holds the token
	BiasID Tensor // I32 [rows, MaxBias]: token ids, −1 where unused
	Bias   Tensor // F32 [rows, MaxBias]
	Mask   Tensor // I32 [rows, (V+31)/32]: allowed tokens, a bit each
}

// SeenInPrompt is the bit of SamplerState.Counts that says the prompt holds the token.
const SeenInPrompt = 1 << 30

// MaxBias is the most entries of a logit_bias.
const MaxBias = 1024

// Sampled is what a step's sampling writes; row i is row i of the step's logits.
type Sampled struct {
	Token      Tensor // I32 [1, rows]; a later step's Feed reads it
	Logprob    Tensor // F32 [1, rows]: log-probability of Token under the model's own distribution (no temperature, penalties, masks)
	TopID      Tensor // I32 [rows, MaxTopLogprobs]
	TopLogprob Tensor // F32 [rows, MaxTopLogprobs], descending
	Rank       Tensor // I32 [1, rows]: place of Token in that distribution, from 1
}
