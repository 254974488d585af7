package grammar

import (
	"encoding/binary"
	"slices"
)

// rule is a deterministic automaton over bytes that may call other rules: a pushdown automaton's procedure. Every state reaches a
// final one. Where it is counted, a number goes along with the state, and edges marked count are there only below max,
// those marked done only from min on.
type rule struct {
	class  [256]uint8 // bytes that no state tells apart
	width  int        // classes
	next   []int32    // [states, width]; −1: none
	mark   []mark     // as next, nil where not counted
	final  []bool     // [states]
	calls  [][]call   // [states], nil where there are none at all
	min    int32      // counted: of edges marked count that must be taken
	max    int32      // counted: that may be taken, unlimited: −1
	states int32
}

// call is an edge that is taken by a text of another rule.
type call struct {
	rule, then int32
}

type mark uint8

const (
	plain mark = iota
	count      // counts, and is there only below max
	done       // is there only from min on
)

// step follows a byte from a state, which for a counted rule is count·states + the automaton's state. It returns −1 where there is no edge.
func (r *rule) step(state int32, b byte) int32 {
	if r.mark == nil {
		return r.next[int(state)*r.width+int(r.class[b])]
	}
	n, s := state/r.states, state%r.states
	at := int(s)*r.width + int(r.class[b])
	to := r.next[at]
	if to < 0 {
		return -1
	}
	switch r.mark[at] {
	case count:
		switch {
		case r.max < 0:
			n = min(n+1, r.min)
		case n >= r.max:
			return -1
		default:
			n++
		}
	case done:
		if n < r.min {
			return -1
		}
	}
	return n*r.states + to
}

func (r *rule) isFinal(state int32) bool {
	if r.mark != nil {
		state %= r.states
	}
	return r.final[state]
}

// callsOf are the calls of a state; then is relative to base.
func (r *rule) callsOf(state int32) (calls []call, base int32) {
	if r.calls == nil {
		return nil, 0
	}
	if r.mark != nil {
		base = state / r.states * r.states
	}
	return r.calls[state-base], base
}

// builder makes the nondeterministic automaton of a rule. State 0 is its start, 1 its end.
type builder struct {
	edges [][]edge
	mark  mark // of edges added now

	seen []int32 // for closure: the number of the last that met a state
	turn int32
	todo []int32
	work int // steps taken
}

type edge struct {
	lo, hi byte
	mark   mark
	kind   edgeKind
	rule   int32
	to     int32
}

type edgeKind uint8

const (
	onByte edgeKind = iota
	onNothing
	onCall
)

const (
	start int32 = 0
	end   int32 = 1
)

func newBuilder() *builder { return &builder{edges: make([][]edge, 2)} }

func (b *builder) state() int32 {
	b.edges = append(b.edges, nil)
	return int32(len(b.edges) - 1)
}

func (b *builder) bytes(from int32, lo, hi byte, to int32) {
	b.edges[from] = append(b.edges[from], edge{lo: lo, hi: hi, mark: b.mark, to: to})
}

func (b *builder) skip(from, to int32) {
	b.edges[from] = append(b.edges[from], edge{kind: onNothing, to: to})
}

// call lets any one of the rules lead from one state to another.
func (b *builder) call(from int32, rules []int32, to int32) {
	for _, r := range rules {
		b.edges[from] = append(b.edges[from], edge{kind: onCall, rule: r, to: to})
	}
}

// text leads from a state by a text, and returns where to. Equal beginnings are not shared before the automaton is made deterministic.
func (b *builder) text(from int32, s string) int32 {
	for i := range len(s) {
		to := b.state()
		b.bytes(from, s[i], s[i], to)
		from = to
	}
	return from
}

// textTo is text that ends in a given state.
func (b *builder) textTo(from int32, s string, to int32) {
	last := len(s) - 1
	b.bytes(b.text(from, s[:last]), s[last], s[last], to)
}

// classes splits the bytes so that within one no edge tells them apart.
func (b *builder) classes() (class [256]uint8, width int, samples []byte) {
	var cut [257]bool
	for _, edges := range b.edges {
		for _, e := range edges {
			if e.kind == onByte {
				cut[e.lo], cut[int(e.hi)+1] = true, true
			}
		}
	}
	for c := range 256 {
		if c == 0 || cut[c] {
			samples = append(samples, byte(c))
		}
		class[c] = uint8(len(samples) - 1)
	}
	return class, len(samples), samples
}

// closure adds what is reached by nothing to a set of states, and sorts it.
func (b *builder) closure(set []int32) []int32 {
	if len(b.seen) != len(b.edges) {
		b.seen, b.turn = make([]int32, len(b.edges)), 0
	}
	b.turn++
	out := make([]int32, 0, len(set))
	todo := append(b.todo[:0], set...)
	for len(todo) > 0 {
		s := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		b.work++
		if b.seen[s] == b.turn {
			continue
		}
		b.seen[s] = b.turn
		bare := s != end
		for _, e := range b.edges[s] {
			if e.kind == onNothing {
				todo = append(todo, e.to)
			} else {
				bare = false
			}
		}
		if !bare { // a state that only skips distinguishes nothing
			out = append(out, s)
		}
	}
	b.todo = todo
	slices.Sort(out)
	return out
}

func setKey(set []int32) string {
	b := make([]byte, 0, 4*len(set))
	for _, s := range set {
		b = binary.LittleEndian.AppendUint32(b, uint32(s))
	}
	return string(b)
}

// rule makes the automaton deterministic. It returns nil where that needs more than limit states or too much work.
func (b *builder) rule(limit int) *rule {
	r := &rule{}
	var samples []byte
	r.class, r.width, samples = b.classes()
	ids := map[string]int32{}
	var sets [][]int32
	id := func(set []int32) int32 {
		set = b.closure(set)
		if len(set) == 0 {
			return -1
		}
		key := setKey(set)
		n, ok := ids[key]
		if !ok {
			n = int32(len(sets))
			ids[key] = n
			sets = append(sets, set)
		}
		return n
	}
	id([]int32{start})
	counted := false
	for at := 0; at < len(sets); at++ {
		if b.work += r.width; at > limit || b.work > maxWork {
			return nil
		}
		targets, marks := make([][]int32, r.width), make([]mark, r.width)
		called := map[int32][]int32{}
		var order []int32
		final := false
		for _, s := range sets[at] {
			final = final || s == end
			for _, e := range b.edges[s] {
				switch e.kind {
				case onByte:
					for c := int(r.class[e.lo]); c < r.width && samples[c] <= e.hi; c++ {
						if len(targets[c]) > 0 && marks[c] != e.mark {
							panic("grammar: edges of different marks on one byte")
						}
						targets[c], marks[c] = append(targets[c], e.to), e.mark
						counted = counted || e.mark != plain
					}
				case onCall:
					if called[e.rule] == nil {
						order = append(order, e.rule)
					}
					called[e.rule] = append(called[e.rule], e.to)
				}
			}
		}
		for c := range targets {
			to := int32(-1)
			if len(targets[c]) > 0 {
				to = id(targets[c])
			}
			r.next, r.mark = append(r.next, to), append(r.mark, marks[c])
		}
		r.final = append(r.final, final)
		var calls []call
		for _, c := range order {
			if to := id(called[c]); to >= 0 {
				calls = append(calls, call{c, to})
			}
		}
		r.calls = append(r.calls, calls)
	}
	r.states = int32(len(sets))
	if !counted {
		r.mark = nil
	}
	return r
}
