package adapters

import "io"

// Weights is a whole B in memory, not yet scaled.
type Weights struct {
	Geometry Geometry
	Rank     int
	Alpha    float64
	Scaling  float64   // the factor of B·A·x; folded into B when it is loaded for serving
	Data     []float32 // [Rank·OutTotal] in the flat layout
}

// NewWeights is a B of zeros with scaling alpha/rank.
func NewWeights(g Geometry, rank int, alpha float64) *Weights { panic("to come") }

// Module is the part of Data that holds (layer, p): [out, Rank] row-major.
func (w *Weights) Module(layer int, p Proj) []float32 { panic("to come") }

// Meta is what a blob's metadata says beside its tensors.
type Meta struct {
	Geometry    Geometry
	Rank        int
	Alpha       float64
	Scaling     float64
	BasisDigest string // Basis.RowsDigest(Rank)
	BaseHash    string
}

// EncodeBlob writes the blob of a version: a safetensors file with a tensor layers.L.PROJ.lora_B [out, r] bf16
// (rounded to nearest even) for every module that is not all zeros, and the metadata.
func EncodeBlob(w io.Writer, b *Weights, basisDigest, baseHash string) error { panic("to come") }

// DecodeBlob reads a blob and checks each tensor's name, shape, dtype (BF16 or F32) and that its values are finite. A blob
// without any tensor is refused. Errors: ErrCorrupt, ErrBaseMismatch (another geometry), ErrRank; each names the tensor or field.
func DecodeBlob(r io.ReaderAt, size int64, g Geometry) (*Weights, Meta, error) { panic("to come") }

// DType is the working type of a B on the device.
type DType int

// The working types.
const (
	BF16 DType = iota
	F32
)

// Size is the bytes of one element.
func (d DType) Size() int { panic("to come") }

// Pack gives the flat layout's bytes (little-endian) in the working type, with scaling folded in: s·B, computed in float32
// and rounded once. Length: Rank·OutTotal·d.Size().
func (w *Weights) Pack(d DType) []byte { panic("to come") }

// Mix is Σ weights[i]·s_i·B_i at the largest rank, with scaling 1, in float32. Smaller ranks fill the first columns.
func Mix(parts []*Weights, weights []float64) *Weights { panic("to come") }
