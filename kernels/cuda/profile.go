//go:build cuda

package cuda

import (
	"cmp"
	"slices"
	"time"

	"gorgonia.org/cu"
)

var _ Profiler = (*Backend)(nil)

// mark is one launch between two events.
type mark struct {
	name       string
	begin, end cu.Event
}

// Profile runs f and returns the shares of what it enqueued.
func (b *Backend) Profile(f func() error) ([]Share, error) {
	defer b.enter()()
	marks := []mark{}
	b.marks = &marks
	err := f()
	b.marks = nil
	b.keep(cu.Synchronize())
	shares := map[string]*Share{}
	for i := range marks {
		m := &marks[i]
		took, e := m.begin.Elapsed(m.end)
		b.keep(e)
		b.keep(cu.DestroyEvent(&m.begin))
		b.keep(cu.DestroyEvent(&m.end))
		s := shares[m.name]
		if s == nil {
			s = &Share{Name: m.name}
			shares[m.name] = s
		}
		s.Count++
		s.Time += time.Duration(took * float64(time.Millisecond))
	}
	var out []Share
	for _, s := range shares {
		out = append(out, *s)
	}
	slices.SortFunc(out, func(a, c Share) int { return cmp.Or(cmp.Compare(c.Time, a.Time), cmp.Compare(a.Name, c.Name)) })
	if err == nil {
		err = b.failure()
	}
	return out, err
}

// timed brackets what launch enqueues with events while a profile is made.
func (b *Backend) timed(s cu.Stream, name string, launch func() error) error {
	if b.marks == nil {
		return launch()
	}
	var m mark
	var err error
	m.name = name
	m.begin, err = cu.MakeEvent(cu.DefaultEvent)
	b.keep(err)
	m.end, err = cu.MakeEvent(cu.DefaultEvent)
	b.keep(err)
	b.keep(m.begin.Record(s))
	err = launch()
	b.keep(m.end.Record(s))
	*b.marks = append(*b.marks, m)
	return err
}
