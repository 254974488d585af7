package adapters

// Ref is a parsed reference to an adapter or a mix of adapters: `name`, `name@7`, `tenant/name`, `a:0.7+b:0.3`.
type Ref struct {
	Parts []RefPart // at least one
}

// RefPart is one adapter of a reference.
type RefPart struct {
	Tenant string // "": the caller's own
	Name   string
	Number int     // 0: the live version
	Weight float64 // 1 where none is written
}

// MaxMix is the largest number of adapters in one mix.
const MaxMix = 16

// ParseRef reads a reference. A part is [tenant/]name[@number][:weight], parts are joined by +; weights are plain decimals, also
// negative. It returns ErrInvalidName, saying which part is wrong and why.
func ParseRef(s string) (Ref, error) { panic("to come") }

// String is the reference in its canonical form; ParseRef reads it back.
func (r Ref) String() string { panic("to come") }

// CheckName says (ErrInvalidName) why s cannot be a name of an adapter, tenant, job or file. Good names match
// ^[a-z0-9][a-z0-9._-]{0,62}$ and have no two dots in a row.
func CheckName(s string) error { panic("to come") }
