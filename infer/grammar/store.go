package grammar

import (
	"container/list"
	"sync"
)

// store keeps the masks of all grammars of a vocabulary, those used last, up to a number of bytes.
type store struct {
	most int

	mu    sync.Mutex
	bytes int
	known map[maskKey]*list.Element
	order *list.List // of *kept, the one used last in front
}

// maskKey names a state of a rule, or a configuration.
type maskKey struct {
	rule   *identity
	spot   spot
	config *config
}

// identity is what equal rules have in common.
type identity struct{ _ byte }

// local is what tokens do at a state as far as the state's own rule says it, whatever called it; of a configuration, what they do at all.
type local struct {
	mask  []int32 // tokens that end within the rule, or at its end
	exits []int32 // nodes at which the rule may end and longer tokens go on
	work  int     // nodes that were visited for it
}

func (l *local) size() int { return 4*cap(l.mask) + 4*cap(l.exits) + 256 }

type kept struct {
	key maskKey
	*local
}

// maxMaskBytes is how much of masks a vocabulary keeps: of 128,000 tokens, some 8,000 states'.
const maxMaskBytes = 128 << 20

func newStore(most int) *store {
	return &store{most: most, known: map[maskKey]*list.Element{}, order: list.New()}
}

// get finds a mask, or makes it. Several goroutines may make the same.
func (s *store) get(key maskKey, find func() *local) *local {
	s.mu.Lock()
	if e, ok := s.known[key]; ok {
		s.order.MoveToFront(e)
		s.mu.Unlock()
		return e.Value.(*kept).local
	}
	s.mu.Unlock()
	l := find()
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.known[key]; ok {
		return l
	}
	s.known[key] = s.order.PushFront(&kept{key, l})
	for s.bytes += l.size(); s.bytes > s.most && s.order.Len() > 1; {
		last := s.order.Back()
		k := s.order.Remove(last).(*kept)
		delete(s.known, k.key)
		s.bytes -= k.size()
	}
	return l
}
