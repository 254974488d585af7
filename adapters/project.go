package adapters

import (
	"fmt"
	"slices"

	"gonum.org/v1/gonum/mat"
)

// Projection says how much of a foreign LoRA a basis could hold.
type Projection struct {
	Kept    float64      // share of the squared Frobenius norm of all s·B′·A′ that is kept, 0 … 1
	Modules []ModuleKept // the same for each module, in the order of the flat layout
	Exact   bool         // the adapter's A's are the basis' own rows: nothing was projected
}

// ModuleKept is the kept share of one module.
type ModuleKept struct {
	Layer int
	Proj  Proj
	Kept  float64 // 0 … 1
	Norm  float64 // squared Frobenius norm of s·B′·A′: the module's weight in the whole
}

// Project gives the B over the basis' first r rows that is nearest to the foreign LoRA: B = B′·A′·Aᵀ·(A·Aᵀ)⁻¹ for
// each module. The result's scaling is p's; where a module's differs, the ratio goes into its B. It returns
// ErrBaseMismatch where the geometries differ, ErrRank unless 1 ≤ r ≤ R, and ErrCorrupt where s·B overflows.
func (b *Basis) Project(p *PEFT, r int) (*Weights, Projection, error) {
	var report Projection
	if err := b.canHold(p, r); err != nil {
		return nil, report, fmt.Errorf("projecting an adapter: %w", err)
	}
	w := NewWeights(b.Geometry, r, p.Scaling*float64(r))
	w.Scaling = p.Scaling
	var kept, total float64
	for _, m := range p.Modules {
		in, out := b.Geometry.In(m.Proj.Site()), b.Geometry.Out(m.Proj)
		a := floatRows(b.A(m.Layer, m.Proj.Site()), r, in)
		fa, fb := wide(m.A, m.Rank, in), wide(m.B, out, m.Rank)
		norm := mat.Norm(a, 2)
		inv := gramInverse(a, 1e-13*norm*norm)
		var cross, turn, nb mat.Dense
		cross.Mul(fa, a.T()) // [r′, r]
		turn.Mul(&cross, inv)
		nb.Mul(fb, &turn) // [out, r]
		ratio := 1.0
		if m.Scaling != p.Scaling {
			ratio = m.Scaling / p.Scaling
			nb.Scale(ratio, &nb)
		}
		k, t := productNorm(&nb, a), ratio*ratio*productNorm(fb, fa)
		share := 1.0
		if t > 0 {
			share = k / t
		}
		kept, total = kept+k, total+t
		report.Modules = append(report.Modules, ModuleKept{m.Layer, m.Proj, share, t * p.Scaling * p.Scaling})
		for i, dst := 0, w.Module(m.Layer, m.Proj); i < out; i++ {
			for j, v := range nb.RawRowView(i) {
				dst[i*r+j] = float32(v)
			}
		}
	}
	report.Kept = 1
	if total > 0 {
		report.Kept = kept / total
	}
	if err := w.Storable(); err != nil {
		return nil, Projection{}, fmt.Errorf("projecting an adapter: %w", err)
	}
	return w, report, nil
}

// canHold says why the first r rows cannot hold the adapter, whatever is lost of it.
func (b *Basis) canHold(p *PEFT, r int) error {
	if p.Geometry != b.Geometry {
		return ErrBaseMismatch
	}
	if err := b.ofBase(p); err != nil {
		return err
	}
	if r < 1 || r > b.R {
		return fmt.Errorf("%w: %d is not in 1 … %d", ErrRank, r, b.R)
	}
	return nil
}

// ofBase says (ErrBaseMismatch) that an adapter was exported for another base than the basis'.
func (b *Basis) ofBase(p *PEFT) error {
	if p.BaseHash != "" && p.BaseHash != b.BaseHash {
		return fmt.Errorf("%w: it was exported for the base %.12s…, this one is %.12s…", ErrBaseMismatch, p.BaseHash, b.BaseHash)
	}
	return nil
}

func wide(v []float32, rows, cols int) *mat.Dense {
	d := make([]float64, len(v))
	for i, x := range v {
		d[i] = float64(x)
	}
	return mat.NewDense(rows, cols, d)
}

// productNorm is the squared Frobenius norm of b·a, from the two small Gram matrices: tr(bᵀb·a·aᵀ).
func productNorm(b, a *mat.Dense) float64 {
	var bb, aa, m mat.Dense
	bb.Mul(b.T(), b)
	aa.Mul(a, a.T())
	m.MulElem(&bb, &aa)
	return mat.Sum(&m)
}

// Adopt takes the adapter as it is where its A's are exactly the basis' first rows (bf16), and otherwise projects
// it onto all R rows. Errors are Project's.
func (b *Basis) Adopt(p *PEFT) (*Weights, Projection, error) {
	if !b.holds(p) {
		return b.Project(p, b.R)
	}
	w := NewWeights(b.Geometry, p.Rank, p.Scaling*float64(p.Rank))
	w.Alpha, w.Scaling = p.Alpha, p.Scaling
	report := Projection{Kept: 1, Exact: true}
	for _, m := range p.Modules {
		ratio := float32(1)
		if m.Scaling != p.Scaling {
			ratio = float32(m.Scaling / p.Scaling)
		}
		dst := w.Module(m.Layer, m.Proj)
		for i := range b.Geometry.Out(m.Proj) {
			for j, v := range m.B[i*m.Rank : (i+1)*m.Rank] {
				dst[i*p.Rank+j] = v * ratio
			}
		}
		report.Modules = append(report.Modules, ModuleKept{m.Layer, m.Proj, 1, m.norm()})
	}
	if err := w.Storable(); err != nil {
		return nil, Projection{}, fmt.Errorf("adopting an adapter: %w", err)
	}
	return w, report, nil
}

// norm is the squared Frobenius norm of the module's s·B·A.
func (m PEFTModule) norm() float64 {
	return m.Scaling * m.Scaling * productNorm(wide(m.B, len(m.B)/m.Rank, m.Rank), wide(m.A, m.Rank, len(m.A)/m.Rank))
}

// holds says whether all of p's A's are the basis' own first rows, and every module's scaling can be expressed.
func (b *Basis) holds(p *PEFT) bool {
	if p.Geometry != b.Geometry || p.Rank > b.R || b.ofBase(p) != nil {
		return false
	}
	for _, m := range p.Modules {
		if !m.AExact || !slices.Equal(m.ABits, b.A(m.Layer, m.Proj.Site())[:len(m.ABits)]) {
			return false
		}
	}
	return true
}
