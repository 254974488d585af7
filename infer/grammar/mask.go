package grammar

import "slices"

// spot is what of a state matters for a mask: of a counted rule's number only how far its limits are, up to the longest token.
type spot struct {
	state, need, room int32
}

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
		return b.v.store.get(maskKey{rule: b.identities[rule], spot: spot{state: state}}, func() *local { return b.sweepAll(r, rule, state) })
	}
	need, room := r.distance(state, b.v.long)
	// Tokens that are too short to come to a limit do what they do where there is none.
	short := room
	if need > 0 {
		short = min(need, room)
	}
	key := maskKey{rule: b.identities[rule], spot: spot{state % r.states, need, room}}
	if r.calls != nil || short < minShort {
		return b.v.store.get(key, func() *local { return b.sweepAll(r, rule, state) })
	}
	w := b.without(rule, need > 0)
	free := b.v.store.get(maskKey{rule: w.identity, spot: spot{state: key.spot.state}}, func() *local {
		return b.sweepAll(w.rule, rule, key.spot.state)
	})
	if int(short) >= b.v.long {
		return free
	}
	return b.v.store.get(key, func() *local {
		l := &local{mask: slices.Clone(free.mask), work: free.work}
		before := b.spent()
		for i, w := range b.v.longer(int(short)) {
			l.mask[i] &^= w
		}
		for _, node := range free.exits {
			if b.v.depth[node] <= short {
				l.exits = append(l.exits, node)
			}
		}
		b.sweep(r, rule, state, 0, short, l.mask, before+maxMaskWork, func(node int32) { l.exits = append(l.exits, node) })
		l.work += b.spent() - before
		return l
	})
}

// minShort is the length of tokens from which on it pays to look at longer ones alone.
const minShort = 4

// unlimited is a counted rule without limits: without a most, and with either no least or one that is out of reach.
type unlimited struct {
	rule     *rule
	identity *identity
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
		w = &unlimited{&r, b.v.identify(&r)}
		b.unlimited[key] = w
	}
	return w
}

func (b *Bound) sweepAll(r *rule, rule, state int32) *local {
	l := &local{mask: make([]int32, b.v.words)}
	before := b.spent()
	b.sweep(r, rule, state, 0, 0, l.mask, before+maxMaskWork, func(node int32) { l.exits = append(l.exits, node) })
	l.work = b.spent() - before
	return l
}

// position is where a token stands: in the rule itself, or in configurations of it and what it called.
type position struct {
	state  int32
	config *config
}

// sweep adds to a mask the tokens below a node that a state lets pass, and tells the nodes with descendants at which the rule may end; both of
// more than over bytes only. r is the rule, or it without limits. Where b.spent has come to last, of all tokens it still looks at those of one byte.
func (b *Bound) sweep(r *rule, rule, state, below, over int32, dst []int32, last int, exit func(node int32)) {
	v := b.v
	quiet, plain := b.quiet[rule], r.mark == nil
	next, width := r.next, r.width
	base, behind := v.depth[below]+1, v.skip[below]
	at := append(b.positions(), position{state: state})
	loops := over == 0 && r.loops(state, quiet)
	visits := 0
	for n := below + 1; n < behind; {
		visits++
		d := v.depth[n] - base
		late := visits+b.spent() > last
		if late && below > 0 {
			break
		}
		if v.deep[n] <= over || late && d > 0 {
			n = v.skip[n]
			continue
		}
		from := at[d]
		var to position
		if from.config == nil {
			if loops && from.state == state && v.tame[n] { // all that is below passes, too
				for _, id := range v.ids[v.first[n]:v.first[v.skip[n]]] {
					dst[id/32] |= 1 << (id % 32)
				}
				n = v.skip[n]
				continue
			}
			calm := false
			if plain {
				if to.state = next[int(from.state)*width+int(r.class[v.label[n]])]; to.state >= 0 {
					calm = quiet[to.state]
				}
			} else if to.state = r.step(from.state, v.label[n]); to.state >= 0 {
				calm = quiet[to.state%r.states]
			}
			if to.state < 0 {
				n = v.skip[n]
				continue
			}
			if !calm {
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
				b.visits, visits = b.visits+visits, 0
				exit(n)
			}
			if len(to.config.frames) == 0 {
				n = v.skip[n]
				continue
			}
		}
		if late {
			n = v.skip[n]
			continue
		}
		at = append(at[:d+1], to)
		n++
	}
	b.spare = append(b.spare, at[:0])
	b.visits += visits
}

// tame reports whether a byte stands for itself in a string: ASCII without quote, backslash and control characters.
func tame(b byte) bool { return b >= 0x20 && b < 0x7F && b != '"' && b != '\\' }

// loops reports whether all tame bytes lead from a state back to it.
func (r *rule) loops(state int32, quiet []bool) bool {
	if !quiet[state%r.states] {
		return false
	}
	for c := range 128 {
		if tame(byte(c)) && r.step(state, byte(c)) != state {
			return false
		}
	}
	return true
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

// hop is a config that stands at a node.
type hop struct {
	node   int32
	config *config
}

// follow adds the tokens below a node that a config lets pass, unless it was followed there for this mask: of rules that may end at once each leads
// to the same callers, whose number would multiply with each one that a token ends. It stops where b.spent has come to last.
func (b *Bound) follow(below int32, c *config, dst []int32, last int) {
	h := hop{below, c}
	if _, ok := b.followed[h]; ok || b.spent() > last {
		return
	}
	b.followed[h] = struct{}{}
	for _, f := range c.frames {
		b.sweep(b.g.rules[f.rule], f.rule, f.state, below, 0, dst, last, func(node int32) {
			if f.parent != nil {
				b.follow(node, f.parent, dst, last)
			}
		})
	}
}

// mask finds the tokens that a config lets pass. The caller holds b.mu.
func (b *Bound) mask(c *config) []int32 {
	return b.v.store.get(maskKey{config: c}, func() *local {
		dst := make([]int32, b.v.words)
		clear(b.followed)
		work := 0 // that this mask is worth, whether or not a part of it was found before: the mask must not depend on that
		for _, f := range c.frames {
			if work > maxMaskWork {
				b.sweep(b.g.rules[f.rule], f.rule, f.state, 0, 0, dst, 0, func(int32) {})
				continue
			}
			l := b.local(f.rule, f.state)
			work += l.work
			before := b.spent()
			for i, w := range l.mask {
				dst[i] |= w
			}
			if f.parent != nil {
				for _, node := range l.exits {
					b.follow(node, f.parent, dst, before+maxMaskWork-work)
				}
			}
			work += b.spent() - before
		}
		if c.out && len(c.frames) > 0 {
			for _, id := range b.v.ends {
				dst[id/32] |= 1 << (id % 32)
			}
		}
		return &local{mask: dst}
	}).mask
}

// spent is what all masks together were worth, in nodes: those visited, and the steps of stacks.
func (b *Bound) spent() int { return b.visits + b.stacks.work }

// maxMaskWork bounds a mask, in nodes: a dozen walks of the tree of 128,000 tokens. Where a text may stand in many places at once, those behind
// the bound offer tokens of one byte alone; what is offered is right, and the text can go on and end.
const maxMaskWork = 4_000_000
