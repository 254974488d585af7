package grammar

import "sync"

// Bound is a grammar with a vocabulary: what all texts that follow it share, the masks of its states above all. It is safe for concurrent use.
type Bound struct {
	g          *Grammar
	v          *Vocabulary
	quiet      [][]bool    // [rules][states]: nothing ends and nothing is called
	identities []*identity // [rules]

	mu        sync.Mutex
	stacks    *stacks
	first     *config
	unlimited map[int32]*unlimited
	visits    int // nodes, ever
	spare     [][]position
	followed  map[hop]struct{} // for the mask that is being found
}

// Bind binds a grammar to the vocabulary. It takes no notable time: masks are made when they are asked for.
func (v *Vocabulary) Bind(g *Grammar) *Bound {
	b := &Bound{g: g, v: v, stacks: newStacks(g), unlimited: map[int32]*unlimited{}, followed: map[hop]struct{}{}}
	for _, r := range g.rules {
		q := make([]bool, r.states)
		for s := range q {
			q[s] = !r.final[s] && (r.calls == nil || len(r.calls[s]) == 0)
		}
		b.quiet, b.identities = append(b.quiet, q), append(b.identities, v.identify(r))
	}
	b.first = b.stacks.begin()
	return b
}

// New makes a matcher that stands before an empty text.
func (b *Bound) New() *Matcher { return &Matcher{b: b, at: b.first} }

// Matcher follows one text token by token. It satisfies infer.Constraint, and belongs to one goroutine.
type Matcher struct {
	b    *Bound
	at   *config // nil: the text has left the grammar, or has ended
	done bool
}

// Mask sets the bits of the tokens that may come next: each token with which the text still is the beginning of one of the grammar's, and
// the tokens that end a text where it is one of the grammar's. Where nothing but the end may come no bit is set. dst is zero before.
func (m *Matcher) Mask(dst []int32) {
	if m.at == nil {
		return
	}
	m.b.mu.Lock()
	defer m.b.mu.Unlock()
	copy(dst, m.b.mask(m.at))
}

// Accept goes on by a token. One that Mask does not allow leaves nothing to come.
func (m *Matcher) Accept(token int) {
	if m.at == nil {
		return
	}
	for _, id := range m.b.v.ends {
		if token == id {
			m.done, m.at = m.at.out, nil
			return
		}
	}
	text, ok := m.b.v.text(token)
	if !ok {
		m.at = nil
		return
	}
	m.b.mu.Lock()
	defer m.b.mu.Unlock()
	for _, c := range text {
		if m.at = m.b.stacks.step(m.at, c); m.at == nil {
			return
		}
	}
}

// Complete reports whether the text so far is one of the grammar's.
func (m *Matcher) Complete() bool { return m.done || m.at != nil && m.at.out }
