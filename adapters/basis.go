package adapters

import (
	"context"
	"io"
	"sync"
)

// Method is how the rows of a basis were chosen.
type Method string

// The methods; the design's section 4 says when each is right.
const (
	Orthonormal Method = "orthonormal" // seeded random orthonormal rows
	Kaiming     Method = "kaiming"     // U(±1/√in), PEFT's own
	Activations Method = "activations" // whitened principal directions of the site's inputs
	Import      Method = "import"      // taken from a PEFT LoRA-FA adapter
)

// DefaultRows is R where nothing else is asked for.
const DefaultRows = 64

// BasisConfig says which basis NewBasis makes.
type BasisConfig struct {
	Method   Method // default: orthonormal; import has a function of its own
	Seed     uint64 // default: 0
	R        int    // rows of each A; default: DefaultRows; at most the smallest In of the geometry
	Geometry Geometry
	BaseHash string // hash of the base model that the basis belongs to

	// Cov is called once for each (layer, site) with method activations, from several goroutines at once. It
	// returns the uncentred second moment E[x·xᵀ] of the site's inputs, [in, in] row-major; the caller has left
	// out outlier (first) tokens. The result is not kept and not changed.
	Cov func(layer int, site Site) []float64
}

// Basis is all shared lora_A's of a base model. It is immutable and safe for concurrent use. Rows are nested:
// an adapter of rank r uses the first r rows of each A, and row i does not depend on R.
type Basis struct {
	Method   Method
	Seed     uint64
	R        int
	Geometry Geometry
	BaseHash string

	rows [][]uint16 // [layer·NumSites+site], each [R, in] bf16

	mu          sync.Mutex
	corrections map[correctionKey][]float32
	digests     map[int]string
	fingerprint string
}

type correctionKey struct {
	layer int
	site  Site
	r     int
}

// NewBasis generates a basis, the same on every machine (activations: given the same moments and the same
// architecture). It returns ErrRank where R does not fit the geometry.
func NewBasis(ctx context.Context, c BasisConfig) (*Basis, error) { panic("to come") }

// A is the site's lora_A, bf16 [R, in] row-major; the caller must not change it. The first r·in elements are the
// A of rank r.
func (b *Basis) A(layer int, site Site) []uint16 { panic("to come") }

// Fingerprint is a SHA-256 (hex) over geometry, matrices and base hash, whatever the method.
func (b *Basis) Fingerprint() string { panic("to come") }

// RowsDigest is a SHA-256 (hex) over exactly the first r rows of all A's, the geometry and the base hash: what an
// adapter of rank r records. It panics unless 1 ≤ r ≤ R.
func (b *Basis) RowsDigest(r int) string { panic("to come") }

// Correction is (A_r·A_rᵀ + 1e-8·I)⁻¹, [r, r] row-major, computed in float64 from the bf16 rows and cached. The
// factor 1/s² of the LoRA-FA correction is the caller's. It panics unless 1 ≤ r ≤ R.
func (b *Basis) Correction(layer int, site Site, r int) []float32 { panic("to come") }

// Save writes the basis as one safetensors file: layers.L.SITE.lora_A [R, in] bf16, and metadata.
func (b *Basis) Save(w io.Writer) error { panic("to come") }

// LoadBasis reads what Save wrote and checks its fingerprint (ErrCorrupt).
func LoadBasis(r io.ReaderAt, size int64) (*Basis, error) { panic("to come") }
