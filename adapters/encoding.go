package adapters

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"sort"
	"strconv"
	"sync"

	"bhive/adapters/safetensors"
)

// Encoding is a B on its way into a version's blob: each module is rounded as its values come, and the blob can be read from its beginning while its end is
// not there yet. Safe for concurrent use.
//
// A blob's beginning lists the modules that are not all zeros, which is known only when all have come. Until then those are listed that likely are
// not; a reader that began with another list than the true one fails with errOtherwise, and the next has the true one.
type Encoding struct {
	of      Weights          // without Data
	modules []encodingModule // of layer·NumProjs + proj
	order   []int            // all modules in the file's order
	whole   chan struct{}    // closed when all modules are whole
	failed  chan struct{}    // closed by Fail

	mu     sync.Mutex
	likely []bool // modules that are thought to hold something; once all are whole, those that do
	left   int    // modules that are not whole
	err    error  // Fail's
}

// encodingModule is a module on its way.
type encodingModule struct {
	name   string // of its tensor
	from   int    // of its first number in the flat layout
	n      int    // its numbers
	make   sync.Once
	values []byte        // n in bfloat16
	whole  chan struct{} // closed when all have come

	// Under the encoding's mu, until it is whole.
	left   int     // numbers to come
	filled bool    // one of them is not zero
	bad    int     // the first that bfloat16 cannot hold; n: none
	value  float32 // that one
}

// errOtherwise is a reader's of a B that holds something in other modules than was thought.
var errOtherwise = errors.New("the blob lists other modules than its beginning says")

// NewEncoding begins the blob of a B whose numbers come by Put or Fill. Of b only Geometry, Rank, Alpha and Scaling are looked at. trained are the projections
// that likely hold something; nil is all.
func NewEncoding(b Weights, trained []Proj) *Encoding {
	b.Data = nil
	n := b.Geometry.Layers * int(NumProjs)
	e := &Encoding{of: b, modules: make([]encodingModule, n), order: make([]int, n), whole: make(chan struct{}), failed: make(chan struct{}), likely: make([]bool, n), left: n}
	for i := range e.modules {
		layer, p := moduleOf(i)
		size := b.Rank * b.Geometry.Out(p)
		m := &e.modules[i]
		m.name, m.from, m.n, m.whole = blobTensor(layer, p), b.Rank*b.Geometry.OutOffset(layer, p), size, make(chan struct{})
		m.left, m.bad = size, size
		e.order[i], e.likely[i] = i, trained == nil || slices.Contains(trained, p)
	}
	slices.SortFunc(e.order, func(x, y int) int { return cmp.Compare(e.modules[x].name, e.modules[y].name) })
	return e
}

// encodingOf begins to encode a B, which stays unchanged until that is whole.
func encodingOf(w *Weights) *Encoding {
	e := NewEncoding(*w, nil)
	_ = together(len(e.likely), func(n int) error {
		m := &e.modules[n]
		e.likely[n] = slices.ContainsFunc(w.Data[m.from:m.from+m.n], isFilled)
		return nil
	})
	go e.Fill(w.Data)
	return e
}

func isFilled(v float32) bool { return v != 0 }

// Fill gives all numbers, in the flat layout, and returns when they are encoded.
func (e *Encoding) Fill(data []float32) {
	_ = together(len(e.order), func(i int) error {
		m := &e.modules[e.order[i]]
		e.Put(m.from, data[m.from:m.from+m.n])
		return nil
	})
}

// Put gives the numbers of the flat layout from at on, each of which is given once, and returns when they are encoded.
func (e *Encoding) Put(at int, values []float32) {
	for i := sort.Search(len(e.modules), func(i int) bool { return e.modules[i].from > at }) - 1; len(values) > 0; i++ {
		m := &e.modules[i]
		n := min(len(values), m.from+m.n-at)
		e.put(m, at-m.from, values[:n])
		at, values = at+n, values[n:]
	}
}

// put rounds numbers of a module from its at-th on.
func (e *Encoding) put(m *encodingModule, at int, values []float32) {
	m.make.Do(func() { m.values = make([]byte, 2*m.n) })
	bad := roundBF16(m.values[2*at:], values)
	filled := bad >= 0 || slices.ContainsFunc(values, isFilled)
	e.mu.Lock()
	defer e.mu.Unlock()
	m.filled = m.filled || filled
	if bad >= 0 && at+bad < m.bad {
		m.bad, m.value = at+bad, values[bad]
	}
	if m.left -= len(values); m.left > 0 {
		return
	}
	close(m.whole)
	if e.left--; e.left == 0 {
		for i := range e.modules {
			e.likely[i] = e.modules[i].filled
		}
		close(e.whole)
	}
}

// Fail says that what has not come will not. Whoever waits for it gets the error.
func (e *Encoding) Fail(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.left > 0 && e.err == nil {
		e.err = err
		close(e.failed)
	}
}

// await waits for one of the channels whole.
func (e *Encoding) await(whole <-chan struct{}) error {
	select {
	case <-whole:
		return nil
	case <-e.failed:
		return e.err
	}
}

// wait waits until all is encoded.
func (e *Encoding) wait() error {
	if err := e.await(e.whole); err != nil {
		return err
	}
	for _, n := range e.order {
		if err := e.check(&e.modules[n]); err != nil {
			return err
		}
	}
	return nil
}

// check is the error of a whole module that bfloat16 cannot hold.
func (e *Encoding) check(m *encodingModule) error {
	if m.bad == m.n {
		return nil
	}
	return fmt.Errorf("encoding an adapter: %w: %s: element [%d, %d] is %v", ErrCorrupt, m.name, m.bad/e.of.Rank, m.bad%e.of.Rank, m.value)
}

// listed are the modules that have a tensor, in the file's order: those that hold something, or all where none does.
func (e *Encoding) listed() []int {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !slices.Contains(e.likely, true) {
		return e.order
	}
	return slices.DeleteFunc(slices.Clone(e.order), func(n int) bool { return !e.likely[n] })
}

// Write writes the blob, once all of the B has come.
func (e *Encoding) Write(w io.Writer, basisDigest, baseHash string) error {
	if err := e.wait(); err != nil {
		return err
	}
	r, err := e.reader(basisDigest, baseHash)
	if err != nil {
		return err
	}
	for piece := r.rest; err == nil && piece != nil; piece, err = r.piece() {
		if _, err := w.Write(piece); err != nil {
			return fmt.Errorf("encoding an adapter: %w", err)
		}
	}
	return err
}

// reader reads the blob, waiting for what has not come yet.
func (e *Encoding) reader(basisDigest, baseHash string) (*encodingReader, error) {
	b := &e.of
	float := func(v float64) string { return strconv.FormatFloat(v, 'g', -1, 64) }
	meta := map[string]string{"format": blobFormat, "rank": strconv.Itoa(b.Rank), "alpha": float(b.Alpha),
		"scaling": float(b.Scaling), "basis": basisDigest, "base": baseHash}
	b.Geometry.describe(meta)
	r := &encodingReader{e: e, modules: e.listed()}
	tensors := make([]safetensors.Tensor, len(r.modules))
	for i, n := range r.modules {
		_, p := moduleOf(n)
		tensors[i] = safetensors.Tensor{Name: e.modules[n].name, DType: safetensors.BF16, Shape: []int{b.Geometry.Out(p), b.Rank}}
	}
	var err error
	if r.rest, err = safetensors.Head(tensors, meta); err != nil {
		return nil, fmt.Errorf("encoding an adapter: %w", err)
	}
	return r, nil
}

type encodingReader struct {
	e       *Encoding
	modules []int // that its beginning lists
	next    int   // of them
	rest    []byte
	sure    bool // they are the true ones
}

func (r *encodingReader) Read(p []byte) (int, error) {
	if len(r.rest) == 0 {
		piece, err := r.piece()
		if err != nil {
			return 0, err
		}
		if piece == nil {
			return 0, io.EOF
		}
		r.rest = piece
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// piece is the next module's values, nil after the last.
func (r *encodingReader) piece() ([]byte, error) {
	e := r.e
	whole := e.whole
	var m *encodingModule
	if r.next < len(r.modules) {
		m = &e.modules[r.modules[r.next]]
		whole = m.whole
	}
	if err := e.await(whole); err != nil {
		return nil, err
	}
	if !r.sure {
		select {
		case <-e.whole:
			if r.sure = slices.Equal(r.modules, e.listed()); !r.sure {
				return nil, errOtherwise
			}
		default:
		}
	}
	if m == nil {
		return nil, nil
	}
	r.next++
	return m.values, e.check(m)
}

// pack is PackInto of what the blob, once it is read back, decodes to, and reports whether all of it is finite. All must be encoded.
func (e *Encoding) pack(out []byte, d DType) bool {
	w, listed := &e.of, make([]bool, len(e.modules))
	for _, n := range e.listed() {
		listed[n] = true
	}
	s := float32(w.Scaling)
	return together(len(e.modules), func(i int) error {
		m := &e.modules[i]
		return packParts(out[m.from*d.Size():], m.n, d, func(part []float32, at int) {
			if listed[i] {
				scaleBF16(part, m.values[2*at:], s)
				return
			}
			for j := range part {
				part[j] = s * 0
			}
		})
	}) == nil
}

// moduleOf is a module by its number.
func moduleOf(n int) (layer int, p Proj) { return n / int(NumProjs), Proj(n % int(NumProjs)) }
