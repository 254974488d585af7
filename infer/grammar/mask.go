package grammar

import (
	"slices"
	"sync"
)

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

// distance is how far a state of a counted rule is from its limits, as far as tokens of at most long bytes can tell.
func (r *rule) distance(state int32, long int) (need, room int32) {
	n := state / r.states
	need, room = min(max(r.min-n, 0), int32(long)), int32(long)
	if r.max >= 0 {
		room = min(r.max-n, room)
	}
	return need, room
}

// local finds what tokens do at a state. The caller holds b.mu.
func (b *Bound) local(rule, state int32) *local {
	r := b.g.rules[rule]
	if r.mark == nil {
		return b.masks[rule].get(spot{state: state}, func() *local { return b.sweepAll(r, rule, state) })
	}
	need, room := r.distance(state, b.v.long)
	// Tokens that are too short to come to a limit do what they do where there is none.
	short := room
	if need > 0 {
		short = min(need, room)
	}
	key := spot{state % r.states, need, room}
	if r.calls != nil || short < minShort {
		return b.masks[rule].get(key, func() *local { return b.sweepAll(r, rule, state) })
	}
	w := b.without(rule, need > 0)
	free := w.masks.get(spot{state: key.state}, func() *local { return b.sweepAll(w.rule, rule, key.state) })
	if int(short) >= b.v.long {
		return free
	}
	return b.masks[rule].get(key, func() *local {
		l := &local{mask: slices.Clone(free.mask)}
		for i, w := range b.v.longer(int(short)) {
			l.mask[i] &^= w
		}
		for _, node := range free.exits {
			if b.v.depth[node] <= short {
				l.exits = append(l.exits, node)
			}
		}
		b.sweep(r, rule, state, 0, short, l.mask, func(node int32) { l.exits = append(l.exits, node) })
		return l
	})
}

// minShort is the length of tokens from which on it pays to look at longer ones alone.
const minShort = 4

// unlimited is a counted rule without limits: without a most, and with either no least or one that is out of reach.
type unlimited struct {
	rule  *rule
	masks *masks
}

func (b *Bound) without(rule int32, need bool) *unlimited {
	key := rule << 1
	if need {
		key |= 1
	}
	w, ok := b.unlimited[key]
	if !ok {
		r := *b.g.rules[rule]
		r.min, r.max = 0, -1
		if need {
			r.min = int32(b.v.long) + 1
		}
		w = &unlimited{&r, b.v.masksOf(&r)}
		b.unlimited[key] = w
	}
	return w
}

func (m *masks) get(key spot, find func() *local) *local {
	m.mu.Lock()
	l, ok := m.seen[key]
	m.mu.Unlock()
	if ok {
		return l
	}
	l = find()
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.seen) >= maxLocals {
		clear(m.seen)
	}
	m.seen[key] = l
	return l
}

func (b *Bound) sweepAll(r *rule, rule, state int32) *local {
	l := &local{mask: make([]int32, b.v.words)}
	b.sweep(r, rule, state, 0, 0, l.mask, func(node int32) { l.exits = append(l.exits, node) })
	return l
}

// position is where a token stands: in the rule itself, or in configurations of it and what it called.
type position struct {
	state  int32
	config *config
}

// sweep adds to a mask the tokens below a node that a state lets pass, and tells the nodes with descendants at which the rule may end; both of
// more than over bytes only. r is the rule, or it without limits.
func (b *Bound) sweep(r *rule, rule, state, below, over int32, dst []int32, exit func(node int32)) {
	v := b.v
	quiet := b.quiet[rule]
	base := v.depth[below] + 1
	at := append(b.positions(), position{state: state})
	for n := below + 1; n < v.skip[below]; {
		if v.deep[n] <= over {
			n = v.skip[n]
			continue
		}
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
		if v.depth[n] > over {
			for _, id := range v.ids[v.first[n]:v.first[n+1]] {
				dst[id/32] |= 1 << (id % 32)
			}
		}
		if to.config != nil {
			if to.config.out && v.depth[n] > over && v.skip[n] > n+1 {
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
		b.sweep(b.g.rules[f.rule], f.rule, f.state, below, 0, dst, func(node int32) {
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
