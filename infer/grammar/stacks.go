package grammar

import (
	"encoding/binary"
	"slices"
)

// stacks holds the stacks of a grammar's pushdown automaton, equal ones once. It is not safe for concurrent use.
type stacks struct {
	g      *Grammar
	known  map[string]*config
	order  uint64
	tops   map[frame]way // closures of single frames
	ways   []*config     // those that remember where bytes lead
	held   int           // frames and ways remembered
	scrap  []frame
	buffer []byte

	work int // what all steps were worth, whether or not they were remembered
}

// way is a config that something leads to, nil where that is no way, and what finding it takes.
type way struct {
	*config
	work int
}

// frame is a place in a rule and where its end leads: the top of one or more stacks.
type frame struct {
	rule, state int32
	parent      *config // nil: the end of what is looked at
}

// config is the set of all stacks that a text may have led to. Frames without an edge on a byte are left out: the calls that they make
// have been made, and where a rule ends, what follows it is here. Immutable but for what it remembers.
type config struct {
	order  uint64
	frames []frame
	out    bool // the outermost rule may end here

	next map[byte]way // remembered
}

const (
	maxHeld   = 200_000 // frames and ways remembered, some 10 MB; more are found anew
	maxFrames = 128     // of one config; more are left out, which forbids texts but admits no wrong one

	frameWork = 8 // of a frame in close, in nodes of a mask
)

func newStacks(g *Grammar) *stacks {
	return &stacks{g: g, known: map[string]*config{}, tops: map[frame]way{}}
}

// begin is where an empty text stands.
func (s *stacks) begin() *config { return s.close([]frame{{0, start, nil}}) }

// step follows a byte; nil means that no text goes on so.
func (s *stacks) step(c *config, b byte) *config {
	if to, ok := c.next[b]; ok {
		s.work += to.work
		return to.config
	}
	before := s.work
	s.work += len(c.frames)
	s.scrap = s.scrap[:0]
	for _, f := range c.frames {
		if to := s.g.rules[f.rule].step(f.state, b); to >= 0 {
			s.scrap = append(s.scrap, frame{f.rule, to, f.parent})
		}
	}
	to := s.close(slices.Clone(s.scrap))
	if c.next == nil {
		c.next = map[byte]way{}
		s.ways = append(s.ways, c)
	}
	c.next[b] = way{to, s.work - before}
	s.hold(1)
	return to
}

// hold counts what is remembered, and forgets all where it is too much.
func (s *stacks) hold(n int) {
	if s.held += n; s.held > maxHeld {
		s.forget()
	}
}

// forget drops all that is remembered. Configs in use live on, and lead nowhere: a mask that is kept for one would keep all that it leads to.
func (s *stacks) forget() {
	clear(s.known)
	clear(s.tops)
	for _, c := range s.ways {
		c.next = nil
	}
	s.ways, s.held = nil, 0
}

// top is the closure of one frame whose rule ends what is looked at.
func (s *stacks) top(rule, state int32) *config {
	f := frame{rule, state, nil}
	to, ok := s.tops[f]
	if ok {
		s.work += to.work
		return to.config
	}
	before := s.work
	c := s.close([]frame{f})
	s.tops[f] = way{c, s.work - before}
	s.hold(1)
	return c
}

// close ends rules and makes calls, until only frames that wait for a byte are left. It returns nil where none is and nothing ends.
func (s *stacks) close(todo []frame) *config {
	if len(todo) == 0 {
		return nil
	}
	out := false
	var frames []frame
	type callee struct {
		rule    int32
		returns []frame
	}
	var callees []callee
	s.work += frameWork * (1 + len(todo))
	for i := 0; i < len(todo); i++ {
		f := todo[i]
		r := s.g.rules[f.rule]
		if r.isFinal(f.state) {
			if f.parent == nil {
				out = true
			} else {
				out = out || f.parent.out
				frames = append(frames, f.parent.frames...)
			}
		}
		if r.hasByte(f.state) {
			frames = append(frames, f)
		}
		calls, base := r.callsOf(f.state)
	next:
		for _, c := range calls {
			back := frame{f.rule, base + c.then, f.parent}
			for j := range callees {
				if callees[j].rule == c.rule {
					s.work += (j + len(callees[j].returns)) / 4
					if !slices.Contains(callees[j].returns, back) {
						callees[j].returns = append(callees[j].returns, back)
					}
					continue next
				}
			}
			s.work += frameWork + len(callees)/4
			callees = append(callees, callee{c.rule, []frame{back}})
		}
	}
	var back *config
	for i, c := range callees {
		if i == 0 || !slices.Equal(c.returns, callees[i-1].returns) { // alternatives return to the same places
			back = s.close(c.returns)
		}
		if back == nil {
			continue
		}
		if sub := s.close([]frame{{c.rule, start, back}}); sub != nil {
			frames = append(frames, sub.frames...)
		}
	}
	if len(frames) == 0 && !out {
		return nil
	}
	s.work += frameWork * len(frames)
	slices.SortFunc(frames, compareFrames)
	frames = slices.Compact(frames)
	if len(frames) > maxFrames {
		frames = frames[:maxFrames]
	}
	return s.intern(frames, out)
}

func compareFrames(a, b frame) int {
	switch {
	case a.rule != b.rule:
		return int(a.rule) - int(b.rule)
	case a.state != b.state:
		return int(a.state) - int(b.state)
	case a.parent.place() < b.parent.place():
		return -1
	case a.parent.place() > b.parent.place():
		return 1
	}
	return 0
}

// place orders configs; nil comes first.
func (c *config) place() uint64 {
	if c == nil {
		return 0
	}
	return c.order
}

func (s *stacks) intern(frames []frame, out bool) *config {
	key := s.buffer[:0]
	if out {
		key = append(key, 1)
	}
	for _, f := range frames {
		key = binary.LittleEndian.AppendUint32(key, uint32(f.rule))
		key = binary.LittleEndian.AppendUint32(key, uint32(f.state))
		key = binary.LittleEndian.AppendUint64(key, f.parent.place())
	}
	s.buffer = key
	if c, ok := s.known[string(key)]; ok {
		return c
	}
	s.order++
	c := &config{order: s.order, frames: frames, out: out}
	s.known[string(key)] = c
	s.hold(8 + len(frames))
	return c
}

// hasByte reports whether a state has an edge on a byte.
func (r *rule) hasByte(state int32) bool {
	if r.mark != nil {
		state %= r.states
	}
	for _, to := range r.next[int(state)*r.width : (int(state)+1)*r.width] {
		if to >= 0 {
			return true
		}
	}
	return false
}
