package adapters

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash"
	"runtime"
	"sync"

	"gonum.org/v1/gonum/mat"
)

// Method is how the rows of a basis were chosen.
type Method string

// The methods.
const (
	Orthonormal Method = "orthonormal" // seeded random orthonormal rows: no data needed, the correction is the identity
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

// Validate says which field is wrong.
func (c BasisConfig) Validate() error {
	if err := c.Geometry.Validate(); err != nil {
		return err
	}
	if limit := c.Geometry.maxRows(); c.R < 1 || c.R > limit {
		return fmt.Errorf("basis: %w: R = %d is not in 1 … %d (the smallest input of a site)", ErrRank, c.R, limit)
	}
	switch c.Method {
	case Orthonormal, Kaiming:
	case Activations:
		if c.Cov == nil {
			return fmt.Errorf("basis: method activations needs the inputs' second moments")
		}
	case Import:
		return fmt.Errorf("basis: method import needs a PEFT adapter")
	default:
		return fmt.Errorf("basis: unknown method %q: orthonormal, kaiming, activations or import", c.Method)
	}
	return nil
}

func (g Geometry) maxRows() int { return min(g.Hidden, g.QDim, g.FeedForward) }

// Basis is all shared lora_A's of a base model. It is immutable and safe for concurrent use. Rows are nested:
// an adapter of rank r uses the first r rows of each A, and row i does not depend on R.
type Basis struct {
	Method   Method
	Seed     uint64
	R        int
	Geometry Geometry
	BaseHash string

	rows [][]uint16 // [layer·NumSites+site], each [R, in] bf16

	mu          sync.Mutex // guards the caches below
	corrections map[correctionKey][]float32
	digests     map[int]string
	fingerprint string
}

type correctionKey struct {
	layer int
	site  Site
	r     int
}

func emptyBasis(m Method, seed uint64, r int, g Geometry, baseHash string) *Basis {
	return &Basis{Method: m, Seed: seed, R: r, Geometry: g, BaseHash: baseHash,
		rows:        make([][]uint16, g.Layers*int(NumSites)),
		corrections: map[correctionKey][]float32{}, digests: map[int]string{}}
}

// NewBasis generates a basis, the same bit for bit on every machine (activations: given the same moments and the
// same architecture). It returns ErrRank where R does not fit the geometry.
func NewBasis(ctx context.Context, c BasisConfig) (*Basis, error) {
	if c.Method == "" {
		c.Method = Orthonormal
	}
	if c.R == 0 {
		c.R = DefaultRows
	}
	if err := c.Validate(); err != nil {
		return nil, err
	}
	b := emptyBasis(c.Method, c.Seed, c.R, c.Geometry, c.BaseHash)
	errs := make([]error, len(b.rows))
	var wg sync.WaitGroup
	tickets := make(chan struct{}, runtime.GOMAXPROCS(0))
	for i := range b.rows {
		tickets <- struct{}{}
		if ctx.Err() != nil {
			break
		}
		wg.Add(1)
		go func() {
			defer func() { <-tickets; wg.Done() }()
			layer, site := i/int(NumSites), Site(i%int(NumSites))
			in := c.Geometry.In(site)
			var rows [][]float64
			switch c.Method {
			case Orthonormal:
				rows = orthonormalRows(c.Seed, layer, site, c.R, in)
			case Kaiming:
				rows = kaimingRows(c.Seed, layer, site, c.R, in)
			case Activations:
				cov := c.Cov(layer, site)
				if len(cov) != in*in {
					panic(fmt.Sprintf("adapters: second moment of layer %d %v has %d elements, not %d²", layer, site, len(cov), in))
				}
				rows, errs[i] = whitenedRows(c.Seed, layer, site, c.R, in, cov)
			}
			b.rows[i] = roundRows(rows, in)
		}()
	}
	wg.Wait()
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("generating the basis: %w", err)
	}
	for i, err := range errs {
		if err != nil {
			return nil, fmt.Errorf("generating the basis: layer %d %v: %w", i/int(NumSites), Site(i%int(NumSites)), err)
		}
	}
	return b, nil
}

func roundRows(rows [][]float64, in int) []uint16 {
	out := make([]uint16, 0, len(rows)*in)
	for _, row := range rows {
		for _, v := range row {
			out = append(out, toBF16(float32(v)))
		}
	}
	return out
}

// A is the site's lora_A, bf16 [R, in] row-major; the caller must not change it. The first r·in elements are the
// A of rank r.
func (b *Basis) A(layer int, site Site) []uint16 {
	if layer < 0 || layer >= b.Geometry.Layers || site < 0 || site >= NumSites {
		panic(fmt.Sprintf("adapters: no A of layer %d, %v", layer, site))
	}
	return b.rows[layer*int(NumSites)+int(site)]
}

func (b *Basis) checkRank(r int) {
	if r < 1 || r > b.R {
		panic(fmt.Sprintf("adapters: rank %d over a basis of %d rows", r, b.R))
	}
}

// Fingerprint is a SHA-256 (hex) over geometry, matrices and base hash, whatever the method.
func (b *Basis) Fingerprint() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.fingerprint == "" {
		h := sha256.New()
		fmt.Fprintf(h, "bhive basis 1\n%s\n", b.BaseHash)
		b.hashRows(h, b.R)
		b.fingerprint = hex.EncodeToString(h.Sum(nil))
	}
	return b.fingerprint
}

// RowsDigest is a SHA-256 (hex) over the geometry and exactly the first r rows of all A's: what an adapter of
// rank r records. Raising R does not change it. It panics unless 1 ≤ r ≤ R.
func (b *Basis) RowsDigest(r int) string {
	b.checkRank(r)
	b.mu.Lock()
	d, ok := b.digests[r]
	b.mu.Unlock()
	if ok {
		return d
	}
	h := sha256.New() // which takes a while; those who ask for another rank do not wait
	fmt.Fprint(h, "bhive rows 1\n")
	b.hashRows(h, r)
	d = hex.EncodeToString(h.Sum(nil))
	b.mu.Lock()
	defer b.mu.Unlock()
	b.digests[r] = d
	return d
}

func (b *Basis) hashRows(h hash.Hash, r int) {
	g := b.Geometry
	fmt.Fprintf(h, "layers %d hidden %d q %d kv %d ff %d rows %d\n", g.Layers, g.Hidden, g.QDim, g.KVDim, g.FeedForward, r)
	var buf []byte
	for i, a := range b.rows {
		buf = buf[:0]
		for _, v := range a[:r*g.In(Site(i%int(NumSites)))] {
			buf = binary.LittleEndian.AppendUint16(buf, v)
		}
		h.Write(buf)
	}
}

// ridge is PEFT's addition to the diagonal of A·Aᵀ.
const ridge = 1e-8

// Correction is (A_r·A_rᵀ + 1e-8·I)⁻¹, [r, r] row-major, computed in float64 from the bf16 rows and cached; the
// caller must not change it. The factor 1/s² of the LoRA-FA correction is the caller's. It panics unless
// 1 ≤ r ≤ R.
func (b *Basis) Correction(layer int, site Site, r int) []float32 {
	b.checkRank(r)
	a := b.A(layer, site)
	key := correctionKey{layer, site, r}
	b.mu.Lock()
	c, ok := b.corrections[key]
	b.mu.Unlock()
	if ok {
		return c
	}
	inv := gramInverse(floatRows(a, r, b.Geometry.In(site)), ridge)
	c = make([]float32, r*r)
	for i := range r {
		for j := range r {
			c[i*r+j] = float32(inv.At(i, j))
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if have, ok := b.corrections[key]; ok {
		return have
	}
	b.corrections[key] = c
	return c
}

// floatRows widens the first r rows of a bf16 matrix [≥ r, in].
func floatRows(a []uint16, r, in int) *mat.Dense {
	d := make([]float64, r*in)
	for i := range d {
		d[i] = float64(fromBF16(a[i]))
	}
	return mat.NewDense(r, in, d)
}

// gramInverse is (A·Aᵀ + eps·I)⁻¹. Where rounding leaves the sum not positive definite, as for linearly dependent
// rows of large norm, eps grows until it is.
func gramInverse(a *mat.Dense, eps float64) *mat.SymDense {
	r, _ := a.Dims()
	var gram mat.SymDense
	gram.SymOuterK(1, a)
	for eps = max(eps, 1e-15*mat.Trace(&gram), 1e-30); ; eps *= 10 {
		m := mat.NewSymDense(r, nil)
		m.CopySym(&gram)
		for i := range r {
			m.SetSym(i, i, m.At(i, i)+eps)
		}
		var chol mat.Cholesky
		if chol.Factorize(m) {
			inv := mat.NewSymDense(r, nil)
			_ = chol.InverseTo(inv) // it only warns of a bad condition
			return inv
		}
	}
}
