package grammar

import (
	"fmt"
	"slices"
)

// text is the rule of strings that satisfy f.
func (c *compiler) text(f flat) (int32, error) {
	least, most := f.lengths()
	if most >= 0 && least > most {
		id, found, err := c.reserve("nothing", f.pointer())
		if !found && err == nil {
			c.rules[id] = &rule{}
		}
		return id, err
	}
	if !f.shaped() {
		id, found, err := c.reserve(fmt.Sprintf("text:%d:%d", least, most), f.pointer())
		if found || err != nil {
			return id, err
		}
		return id, c.set(id, lengthRule(least, most), f.pointer())
	}
	d, err := c.textDFA(f)
	if err != nil {
		return 0, err
	}
	return c.dfaRule(d, f.pointer())
}

// dfaRule is the rule of a JSON string over an automaton's texts.
func (c *compiler) dfaRule(d *runeDFA, at string) (int32, error) {
	if id, ok := c.strings[d]; ok {
		return id, nil
	}
	r, err := d.bytes(true, c.work, at)
	if err != nil {
		return 0, err
	}
	id, _, err := c.reserve(fmt.Sprintf("automaton:%d", len(c.strings)), at)
	if err != nil {
		return 0, err
	}
	c.strings[d] = id
	return id, c.set(id, r, at)
}

func (f flat) lengths() (least, most int) {
	most = -1
	for _, s := range f {
		least = max(least, s.minLength)
		if s.maxLength >= 0 && (most < 0 || s.maxLength < most) {
			most = s.maxLength
		}
	}
	return least, most
}

// shaped reports whether more than the length is asked of a string.
func (f flat) shaped() bool {
	return slices.ContainsFunc(f, func(s *schema) bool { return s.pattern != nil || formats[s.format] != "" })
}

// textDFA is the automaton of strings that satisfy f.
func (c *compiler) textDFA(f flat) (*runeDFA, error) {
	var out *runeDFA // nil: all strings
	for _, s := range f {
		if s.pattern != nil {
			d, err := c.pattern(*s.pattern, s.at+"/pattern")
			if err != nil {
				return nil, err
			}
			if out, err = c.both(out, d, s.at+"/pattern"); err != nil {
				return nil, err
			}
		}
		if e := formats[s.format]; e != "" {
			d, err := c.expression(e, true, s.at+"/format")
			if err != nil {
				return nil, err
			}
			if out, err = c.both(out, d, s.at+"/format"); err != nil {
				return nil, err
			}
		}
	}
	least, most := f.lengths()
	if out == nil {
		out = anyDFA()
	}
	if least > 0 || most >= 0 {
		return out.sized(least, most, c.work, f.pointer())
	}
	return out, nil
}

func (c *compiler) both(a, b *runeDFA, at string) (*runeDFA, error) {
	if a == nil {
		return b, nil
	}
	return a.and(b, c.work, at)
}

// pattern is the automaton of a regular expression that is searched for.
func (c *compiler) pattern(p, at string) (*runeDFA, error) { return c.expression(p, false, at) }

func (c *compiler) expression(p string, whole bool, at string) (*runeDFA, error) {
	key := expression{p, whole}
	if d, ok := c.expressions[key]; ok {
		return d, nil
	}
	d, err := compilePattern(p, whole, c.work, at)
	if err == nil {
		c.expressions[key] = d
	}
	return d, err
}

type expression struct {
	pattern string
	whole   bool
}

// lengthRule is the rule of JSON strings of so many characters; most −1: no limit.
func lengthRule(least, most int) *rule {
	b := newBuilder()
	body := b.state()
	b.bytes(start, '"', '"', body)
	hex := func(from, to int32, digits string) {
		for _, d := range digits {
			b.bytes(from, byte(d), byte(d), to)
			if d >= 'a' {
				b.bytes(from, byte(d)-32, byte(d)-32, to)
			}
		}
	}
	const digits = "0123456789abcdef"
	hexes := func(n int, to int32) int32 {
		for range n {
			s := b.state()
			hex(s, to, digits)
			to = s
		}
		return to
	}
	counted := least > 0 || most >= 0
	if counted {
		b.mark = count // with the first byte of a character
	}
	b.bytes(body, 0x20, 0x21, body)
	b.bytes(body, 0x23, 0x5B, body)
	b.bytes(body, 0x5D, 0x7F, body)
	tails := [4]int32{body} // so many continuation bytes are to come
	for i := 1; i < len(tails); i++ {
		tails[i] = b.state()
		b.edges[tails[i]] = append(b.edges[tails[i]], edge{lo: 0x80, hi: 0xBF, to: tails[i-1]})
	}
	escape := b.state()
	b.bytes(body, '\\', '\\', escape)
	second := func(lead, lo, hi byte, to int32) {
		s := b.state()
		b.bytes(body, lead, lead, s)
		b.edges[s] = append(b.edges[s], edge{lo: lo, hi: hi, to: to})
	}
	b.bytes(body, 0xC2, 0xDF, tails[1])
	second(0xE0, 0xA0, 0xBF, tails[1])
	b.bytes(body, 0xE1, 0xEC, tails[2])
	second(0xED, 0x80, 0x9F, tails[1])
	b.bytes(body, 0xEE, 0xEF, tails[2])
	second(0xF0, 0x90, 0xBF, tails[2])
	b.bytes(body, 0xF1, 0xF3, tails[3])
	second(0xF4, 0x80, 0x8F, tails[2])
	b.mark = plain
	for _, e := range `"\/bfnrt` {
		b.bytes(escape, byte(e), byte(e), body)
	}
	// \uXXXX, where D800–DFFF come in pairs only.
	u := b.state()
	b.bytes(escape, 'u', 'u', u)
	last2, last3 := hexes(2, body), hexes(3, body)
	hex(u, last3, "0123456789abcef")
	d := b.state()
	hex(u, d, "d")
	hex(d, last2, "01234567")
	low := b.state()
	hex(low, last2, "cdef")
	lowD := b.state()
	hex(lowD, low, "d")
	lowU := b.state()
	b.bytes(lowU, 'u', 'u', lowD)
	pair := b.state()
	b.bytes(pair, '\\', '\\', lowU)
	hex(d, hexes(2, pair), "89ab")
	if counted {
		b.mark = done
	}
	b.bytes(body, '"', '"', end)
	r := b.rule(1000)
	if counted {
		r.min, r.max = int32(least), int32(most)
	}
	return r
}
