package adapters

// Projection says how much of a foreign LoRA a basis could hold.
type Projection struct {
	Kept    float64      // share of the squared Frobenius norm of all B′·A′ that is kept, 0 … 1
	Modules []ModuleKept // the same for each module, in the order of the flat layout
	Exact   bool         // the adapter's A's are the basis' own rows: nothing was projected
}

// ModuleKept is the kept share of one module.
type ModuleKept struct {
	Layer int
	Proj  Proj
	Kept  float64
}

// Project gives the B over the basis' first r rows that is nearest to the foreign LoRA: B = B′·A′·Aᵀ·(A·Aᵀ)⁻¹ for
// each module. The result's scaling is p's. It returns ErrBaseMismatch where the geometries differ and ErrRank unless 1 ≤ r ≤ R.
func (b *Basis) Project(p *PEFT, r int) (*Weights, Projection, error) { panic("to come") }

// Adopt takes the adapter as it is where its A's are exactly the basis' first rows (bf16), and otherwise projects
// it onto all R rows.
func (b *Basis) Adopt(p *PEFT) (*Weights, Projection, error) { panic("to come") }
