package grammar

// work bounds what compiling one grammar may take, so that no request can hold a server up: in steps of some tens of nanoseconds.
type work struct{ left int }

const maxWork = 20_000_000

func newWork() *work { return &work{maxWork} }

// spend takes n steps, and fails where there are none left.
func (w *work) spend(n int, at string) error {
	if w.left -= n; w.left < 0 {
		return bad(at, "is too large or combines too much to be compiled")
	}
	return nil
}
