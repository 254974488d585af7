package grammar

import "sync"

// masks are what tokens do at the states of a rule, found when first asked for.
type masks struct {
	mu   sync.Mutex
	seen map[spot]*local
}

// spot is what of a state matters for a mask: of a counted rule's number only how far its limits are, up to the longest token.
type spot struct {
	state, need, room int32
}

// local is what tokens do at a state as far as the state's own rule says it, whatever called it.
type local struct {
	mask  []int32 // tokens that end within the rule, or at its end
	exits []int32 // nodes at which the rule may end and longer tokens go on
}

// maxLocals is how many states' masks a rule keeps.
const maxLocals = 512

func newMasks() *masks { return &masks{seen: map[spot]*local{}} }

// spot of a state, for tokens of at most long bytes.
func (r *rule) spot(state int32, long int) spot {
	if r.mark == nil {
		return spot{state: state}
	}
	n := state / r.states
	s := spot{state: state % r.states, need: min(max(r.min-n, 0), int32(long)), room: int32(long)}
	if r.max >= 0 {
		s.room = min(r.max-n, int32(long))
	}
	return s
}

// local finds what tokens do at a state. The caller holds b.mu.
func (b *Bound) local(rule, state int32) *local {
	r := b.g.rules[rule]
	key := r.spot(state, b.v.long)
	m := b.masks[rule]
	m.mu.Lock()
	l, ok := m.seen[key]
	m.mu.Unlock()
	if ok {
		return l
	}
	l = &local{mask: make([]int32, b.v.words)}
	b.sweep(0, rule, state, l.mask, func(node int32) { l.exits = append(l.exits, node) })
	m.mu.Lock()
	if len(m.seen) >= maxLocals {
		clear(m.seen)
	}
	m.seen[key] = l
	m.mu.Unlock()
	return l
}

// position is where a token stands: in the rule itself, or in configurations of it and what it called.
type position struct {
	state  int32
	config *config
}

// sweep adds to a mask the tokens below a node that a state lets pass, and tells the nodes with descendants at which the rule may end.
func (b *Bound) sweep(below, rule, state int32, dst []int32, exit func(node int32)) {
	v, r := b.v, b.g.rules[rule]
	quiet := b.quiet[rule]
	base := v.depth[below] + 1
	at := append(b.positions(), position{state: state})
	for n := below + 1; n < v.skip[below]; {
		d := v.depth[n] - base
		from := at[d]
		var to position
		if from.config == nil {
			to.state = r.step(from.state, v.label[n])
			if to.state < 0 {
				n = v.skip[n]
				continue
			}
			if !quiet[to.state%r.states] {
				to.config = b.stacks.top(rule, to.state)
			}
		} else if to.config = b.stacks.step(from.config, v.label[n]); to.config == nil {
			n = v.skip[n]
			continue
		}
		for _, id := range v.ids[v.first[n]:v.first[n+1]] {
			dst[id/32] |= 1 << (id % 32)
		}
		if to.config != nil {
			if to.config.out && v.skip[n] > n+1 {
				exit(n)
			}
			if len(to.config.frames) == 0 {
				n = v.skip[n]
				continue
			}
		}
		at = append(at[:d+1], to)
		n++
	}
	b.spare = append(b.spare, at[:0])
}

// positions is a stack for sweep, which calls itself.
func (b *Bound) positions() []position {
	if n := len(b.spare); n > 0 {
		p := b.spare[n-1]
		b.spare = b.spare[:n-1]
		return p
	}
	return nil
}

// follow adds the tokens below a node that a config lets pass.
func (b *Bound) follow(below int32, c *config, dst []int32) {
	for _, f := range c.frames {
		b.sweep(below, f.rule, f.state, dst, func(node int32) {
			if f.parent != nil {
				b.follow(node, f.parent, dst)
			}
		})
	}
}

// mask finds the tokens that a config lets pass. The caller holds b.mu.
func (b *Bound) mask(c *config) []int32 {
	b.stacks.refresh(c)
	if c.mask != nil {
		return c.mask
	}
	dst := make([]int32, b.v.words)
	for _, f := range c.frames {
		l := b.local(f.rule, f.state)
		for i, w := range l.mask {
			dst[i] |= w
		}
		if f.parent != nil {
			for _, node := range l.exits {
				b.follow(node, f.parent, dst)
			}
		}
	}
	if c.out && len(c.frames) > 0 {
		for _, id := range b.v.ends {
			dst[id/32] |= 1 << (id % 32)
		}
	}
	if b.kept += 4 * len(dst); b.kept > maxMaskBytes {
		b.kept = 0
		b.stacks.forget()
	}
	b.stacks.refresh(c)
	c.mask = dst
	return dst
}

// maxMaskBytes is how much of masks a bound grammar keeps, beside those of its rules.
const maxMaskBytes = 16 << 20
