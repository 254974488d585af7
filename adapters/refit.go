package adapters

import (
	"context"
	"fmt"
	"runtime"

	"golang.org/x/sync/errgroup"
	"gonum.org/v1/gonum/mat"
)

// RefitConfig says how a foreign LoRA is fitted anew.
type RefitConfig struct {
	Rank int // rows of the basis to use; default: all R
	// Ridge is λ as a share of the mean energy of the coordinates of z; default 1e-6. It decides only what the texts do not.
	Ridge float64
	// Cov is as BasisConfig's: E[x·xᵀ] of a site's inputs, over the texts on which B is to do what the LoRA does.
	Cov func(layer int, site Site) []float64
}

// Refit gives the B over the basis' first rows whose outputs are nearest to the foreign LoRA's on average over the texts' inputs x, with z = A·x:
//
//	B = argmin E‖B·z − s·B′·A′·x‖² + λ·‖B‖²  =  s·B′·A′·C·Aᵀ·(A·C·Aᵀ + λ·I)⁻¹,  C = E[x·xᵀ]
//
// for each module by itself, in float64. Where Project keeps what it can of the weights' change, for all inputs alike, this keeps what it can of the outputs'
// change for inputs that occur. In the report, Kept is the share of the outputs' energy, 1 − E‖B·z − s·B′·A′·x‖²/E‖s·B′·A′·x‖², and Norm is
// that energy. Errors are Project's, and ctx's.
func (b *Basis) Refit(ctx context.Context, p *PEFT, c RefitConfig) (*Weights, Projection, error) {
	r := c.Rank
	if r == 0 {
		r = b.R
	}
	if err := b.canHold(p, r); err != nil {
		return nil, Projection{}, fmt.Errorf("refitting an adapter: %w", err)
	}
	if c.Ridge == 0 {
		c.Ridge = 1e-6
	}
	w := NewWeights(b.Geometry, r, p.Scaling*float64(r))
	w.Scaling = p.Scaling
	report := Projection{Kept: 1, Modules: make([]ModuleKept, len(p.Modules))}
	sites := make([][]int, b.Geometry.Layers*int(NumSites)) // indices of the modules that read a site
	for i, m := range p.Modules {
		at := m.Layer*int(NumSites) + int(m.Proj.Site())
		sites[at] = append(sites[at], i)
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(runtime.GOMAXPROCS(0))
	for at, modules := range sites {
		if len(modules) == 0 {
			continue
		}
		group.Go(func() error {
			if err := ctx.Err(); err != nil {
				return fmt.Errorf("refitting an adapter: %w", err)
			}
			layer, site := at/int(NumSites), Site(at%int(NumSites))
			in := b.Geometry.In(site)
			moments := c.Cov(layer, site)
			if err := checkMoments(moments); err != nil { // of NaNs there is no inverse, whatever is added to them
				return fmt.Errorf("refitting an adapter: layer %d %v: %w", layer, site, err)
			}
			cov := mat.NewDense(in, in, moments)
			var ca, gram mat.Dense
			a := floatRows(b.A(layer, site), r, in)
			ca.Mul(cov, a.T()) // [in, r]
			gram.Mul(a, &ca)   // [r, r]: E[z·zᵀ]
			inv := ridgeInverse(&gram, c.Ridge)
			for _, i := range modules {
				m := p.Modules[i]
				fit, kept := m.refit(&ca, &gram, inv, cov)
				report.Modules[i] = kept
				fit.Scale(1/p.Scaling, fit)
				for o, dst := 0, w.Module(layer, m.Proj); o < b.Geometry.Out(m.Proj); o++ {
					for j, v := range fit.RawRowView(o) {
						dst[o*r+j] = float32(v)
					}
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, Projection{}, err
	}
	var kept, total float64
	for _, m := range report.Modules {
		kept, total = kept+m.Kept*m.Norm, total+m.Norm
	}
	if total > 0 {
		report.Kept = kept / total
	}
	if err := w.Storable(); err != nil {
		return nil, Projection{}, fmt.Errorf("refitting an adapter: %w", err)
	}
	return w, report, nil
}

// refit is the module's own B over rows A, scaling included: ca = C·Aᵀ, gram = A·C·Aᵀ, inv its inverse.
func (m PEFTModule) refit(ca, gram *mat.Dense, inv mat.Matrix, cov *mat.Dense) (*mat.Dense, ModuleKept) {
	in, _ := cov.Dims()
	out := len(m.B) / m.Rank
	fa, fb := wide(m.A, m.Rank, in), wide(m.B, out, m.Rank)
	var cross, turn, fac, own mat.Dense
	cross.Mul(fa, ca)     // [r′, r]: E[A′x·zᵀ]
	turn.Mul(&cross, inv) // [r′, r]
	fit := mat.NewDense(out, turn.RawMatrix().Cols, nil)
	fit.Mul(fb, &turn)
	fac.Mul(fa, cov)
	own.Mul(&fac, fa.T()) // [r′, r′]: E[A′x·(A′x)ᵀ]
	// E‖t‖², E‖Bz‖² and E⟨Bz, t⟩ through the small Gram matrix of B′.
	var bb, tg, tgt, tc mat.Dense
	bb.Mul(fb.T(), fb)
	tg.Mul(&turn, gram)
	tgt.Mul(&tg, turn.T())
	tc.Mul(&turn, cross.T())
	energy, fitted, both := elementSum(&bb, &own), elementSum(&bb, &tgt), elementSum(&bb, &tc)
	kept := ModuleKept{Layer: m.Layer, Proj: m.Proj, Kept: 1, Norm: energy * m.Scaling * m.Scaling}
	if energy > 0 {
		kept.Kept = 1 - (energy-2*both+fitted)/energy
	}
	fit.Scale(m.Scaling, fit)
	return fit, kept
}

func elementSum(a, b *mat.Dense) float64 {
	var m mat.Dense
	m.MulElem(a, b)
	return mat.Sum(&m)
}

// ridgeInverse is (gram + λ·I)⁻¹ with λ the given share of the mean of gram's diagonal, or as much more as it takes.
func ridgeInverse(gram *mat.Dense, share float64) *mat.SymDense {
	r, _ := gram.Dims()
	mean := mat.Trace(gram) / float64(r)
	for eps := max(share*mean, 1e-30); ; eps *= 10 {
		m := mat.NewSymDense(r, nil)
		for i := range r {
			for j := i; j < r; j++ {
				m.SetSym(i, j, (gram.At(i, j)+gram.At(j, i))/2)
			}
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
