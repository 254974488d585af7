package grammar

import (
	"encoding/binary"
	"unicode/utf8"
)

// spelling is a sequence of byte ranges that leads to a state of a runeDFA: the rest of a character.
type spelling struct {
	ranges [6][2]byte // \u0000 is the longest
	n      int
	to     int32
}

// bytes makes the rule of an automaton's texts in UTF-8, or as JSON strings: with quotes around them and characters escaped that must be.
func (d *runeDFA) bytes(quoted bool, w *work, at string) (*rule, error) {
	s := speller{d: d, quoted: quoted, ids: map[string]int32{}, whole: make([]int32, len(d.edges))}
	for i := range s.whole {
		s.whole[i] = -1
	}
	r := &rule{width: 256}
	for c := range 256 {
		r.class[c] = uint8(c)
	}
	if quoted {
		s.add(nil, -1) // the opening quote
		s.add(nil, -1) // behind the closing one
	}
	first := s.state(0)
	for n := 0; n < len(s.items); n++ {
		if n > maxStates {
			return nil, bad(at, "it needs more than %d states", maxStates)
		}
		row := make([]int32, 256)
		for i := range row {
			row[i] = -1
		}
		final := false
		switch {
		case quoted && n == 0:
			row['"'] = first
		case quoted && n == 1:
			final = true
		default:
			if err := w.spend(s.row(s.items[n], row)+512, at); err != nil {
				return nil, err
			}
			if q := s.of[n]; q >= 0 && d.final[q] {
				if quoted {
					row['"'] = 1
				} else {
					final = true
				}
			}
		}
		r.next, r.final = append(r.next, row...), append(r.final, final)
	}
	r.states = int32(len(s.items))
	r.compress()
	return r, nil
}

// compress merges bytes that no state tells apart.
func (r *rule) compress() {
	columns := map[string]uint8{}
	var keep []int
	var class [256]uint8
	key := make([]byte, 4*r.states)
	for c := range 256 {
		for s := range int(r.states) {
			binary.LittleEndian.PutUint32(key[4*s:], uint32(r.next[s*256+c]))
		}
		id, ok := columns[string(key)]
		if !ok {
			id = uint8(len(keep))
			columns[string(key)] = id
			keep = append(keep, c)
		}
		class[c] = id
	}
	next := make([]int32, 0, int(r.states)*len(keep))
	for s := range int(r.states) {
		for _, c := range keep {
			next = append(next, r.next[s*256+c])
		}
	}
	r.class, r.width, r.next = class, len(keep), next
}

// speller makes byte states: one for each state of the automaton, and one for each set of ends of characters.
type speller struct {
	d      *runeDFA
	quoted bool
	ids    map[string]int32
	items  [][]spelling
	of     []int32 // the automaton's state, −1 within a character
	whole  []int32 // the byte state of each of the automaton's
}

func (s *speller) add(items []spelling, of int32) int32 {
	s.items, s.of = append(s.items, items), append(s.of, of)
	return int32(len(s.items) - 1)
}

// state is the byte state of one of the automaton's.
func (s *speller) state(q int32) int32 {
	if s.whole[q] < 0 {
		var items []spelling
		for _, e := range s.d.edges[q] {
			items = s.spell(items, e)
		}
		s.whole[q] = s.add(items, q)
	}
	return s.whole[q]
}

// row fills in where bytes lead, and tells how much work it was.
func (s *speller) row(items []spelling, row []int32) (work int) {
	var cut [257]bool
	for _, i := range items {
		cut[i.ranges[0][0]], cut[int(i.ranges[0][1])+1] = true, true
	}
	var of [256]int // the piece that a byte is in
	var pieces []struct {
		rest []spelling
		to   int32
	}
	for c := range 256 {
		if c == 0 || cut[c] {
			pieces = append(pieces, struct {
				rest []spelling
				to   int32
			}{to: -1})
		}
		of[c] = len(pieces) - 1
	}
	for _, i := range items {
		first, last := of[i.ranges[0][0]], of[i.ranges[0][1]]
		rest := i
		copy(rest.ranges[:], i.ranges[1:i.n])
		rest.n--
		rest.ranges[rest.n] = [2]byte{}
		for p := first; p <= last; p++ {
			work++
			if i.n == 1 {
				pieces[p].to = s.state(i.to)
			} else {
				pieces[p].rest = append(pieces[p].rest, rest)
			}
		}
	}
	for p := range pieces {
		if rest := pieces[p].rest; len(rest) > 0 {
			pieces[p].to = s.within(rest)
		}
	}
	for c := range row {
		row[c] = pieces[of[c]].to
	}
	return work
}

// within is the state inside a character.
func (s *speller) within(items []spelling) int32 {
	key := make([]byte, 0, 16*len(items))
	for _, i := range items {
		key = append(key, byte(i.n))
		for _, r := range i.ranges[:i.n] {
			key = append(key, r[0], r[1])
		}
		key = binary.LittleEndian.AppendUint32(key, uint32(i.to))
	}
	id, ok := s.ids[string(key)]
	if !ok {
		id = s.add(items, -1)
		s.ids[string(key)] = id
	}
	return id
}

// spell appends how the characters of an edge are written.
func (s *speller) spell(out []spelling, e runeEdge) []spelling {
	if !s.quoted {
		return spellUTF8(out, e.lo, e.hi, e.to)
	}
	for r := e.lo; r <= min(e.hi, '\\'); r++ {
		switch short := shortEscape(r); {
		case short != 0:
			out = append(out, spelling{ranges: [6][2]byte{{'\\', '\\'}, {short, short}}, n: 2, to: e.to})
		case r < 0x20:
			const hex = "0123456789abcdef"
			c := hex[r&15]
			digits := [][2]byte{{c, c}}
			if c >= 'a' {
				digits = append(digits, [2]byte{c - 32, c - 32})
			}
			for _, last := range digits {
				out = append(out, spelling{ranges: [6][2]byte{{'\\', '\\'}, {'u', 'u'}, {'0', '0'}, {'0', '0'}, {hex[r>>4], hex[r>>4]}, last}, n: 6, to: e.to})
			}
		}
	}
	for _, plain := range [][2]rune{{0x20, '"' - 1}, {'"' + 1, '\\' - 1}, {'\\' + 1, utf8.MaxRune}} {
		if lo, hi := max(e.lo, plain[0]), min(e.hi, plain[1]); lo <= hi {
			out = spellUTF8(out, lo, hi, e.to)
		}
	}
	return out
}

// spellUTF8 splits a range of characters into products of byte ranges.
func spellUTF8(out []spelling, lo, hi rune, to int32) []spelling {
	for _, top := range []rune{0x7F, 0x7FF, 0xFFFF} { // one length each
		if lo <= top && top < hi {
			return spellUTF8(spellUTF8(out, lo, top, to), top+1, hi, to)
		}
	}
	if hi > 0x7F {
		for shift := 6; shift <= 18; shift += 6 { // whole blocks of continuation bytes
			low := rune(1)<<shift - 1
			if lo&^low == hi&^low {
				break
			}
			if lo&low != 0 {
				return spellUTF8(spellUTF8(out, lo, lo|low, to), lo|low+1, hi, to)
			}
			if hi&low != low {
				return spellUTF8(spellUTF8(out, lo, hi&^low-1, to), hi&^low, hi, to)
			}
		}
	}
	a, b := utf8.AppendRune(nil, lo), utf8.AppendRune(nil, hi)
	s := spelling{n: len(a), to: to}
	for i := range a {
		s.ranges[i] = [2]byte{a[i], b[i]}
	}
	return append(out, s)
}
