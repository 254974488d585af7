package grammar

import (
	"fmt"
	"math/big"
	"strings"
)

// Numbers are bounded: so many digits before and behind the point, and of the exponent, where the schema's bounds need no more.
const (
	maxWhole    = 18 // any such integer fits in 64 bits
	maxFraction = 15
	maxPower    = 2
	maxMultiple = 5000 // of multipleOf, its decimal point left out
)

// number is the rule of numbers that satisfy f.
func (c *compiler) number(f flat) (int32, error) {
	n := numberSpec{whole: f.kinds()&kinds(integral) != 0}
	for _, s := range f {
		n.low, n.high = n.low.and(s.low, 1), n.high.and(s.high, -1)
		if s.multiple != nil {
			if n.multiple == nil {
				n.multiple = s.multiple
			} else {
				n.multiple = leastCommon(n.multiple, s.multiple)
				if err := c.work.spend(n.multiple.Num().BitLen()+n.multiple.Denom().BitLen(), s.at+"/multipleOf"); err != nil {
					return 0, err
				}
			}
		}
	}
	id, found, err := c.reserve(n.key(), f.pointer())
	if found || err != nil {
		return id, err
	}
	if n.low.at == nil && n.high.at == nil && n.multiple == nil {
		b := newBuilder()
		n.free(b)
		return id, c.build(id, b, f.pointer())
	}
	r, err := n.rule(f.pointer())
	if err != nil {
		return 0, err
	}
	return id, c.set(id, r, f.pointer())
}

func leastCommon(a, b *big.Rat) *big.Rat {
	// a = p/q, b = r/s: lcm(p·s, r·q) / (q·s)
	x, y := new(big.Int).Mul(a.Num(), b.Denom()), new(big.Int).Mul(b.Num(), a.Denom())
	lcm := new(big.Int).Div(new(big.Int).Mul(x, y), new(big.Int).GCD(nil, nil, x, y))
	return new(big.Rat).SetFrac(lcm, new(big.Int).Mul(a.Denom(), b.Denom()))
}

type numberSpec struct {
	whole     bool
	low, high bound
	multiple  *big.Rat
}

func (n *numberSpec) key() string {
	show := func(b bound) string {
		if b.at == nil {
			return "none"
		}
		return fmt.Sprint(b.at, b.open)
	}
	return fmt.Sprint("number:", n.whole, show(n.low), show(n.high), n.multiple)
}

// free is the automaton of numbers without bounds.
func (n *numberSpec) free(b *builder) {
	begin, minus, zero, after := b.state(), b.state(), b.state(), b.state()
	b.skip(start, begin)
	b.bytes(begin, '-', '-', minus)
	first := b.state()
	b.bytes(begin, '0', '0', zero)
	b.bytes(begin, '1', '9', first)
	b.bytes(minus, '1', '9', first)
	if !n.whole { // −0 is no integer that anybody wants
		b.bytes(minus, '0', '0', zero)
	}
	b.digits(first, maxWhole-1, after)
	b.skip(zero, after)
	if n.whole {
		b.skip(after, end)
		return
	}
	point, digit, power, sign, last := b.state(), b.state(), b.state(), b.state(), b.state()
	b.skip(after, power)
	b.bytes(after, '.', '.', point)
	b.bytes(point, '0', '9', digit)
	b.digits(digit, maxFraction-1, power)
	b.skip(power, end)
	b.bytes(power, 'e', 'e', sign)
	b.bytes(power, 'E', 'E', sign)
	unsigned := b.state()
	b.bytes(sign, '+', '+', unsigned)
	b.bytes(sign, '-', '-', unsigned)
	b.skip(sign, unsigned)
	b.bytes(unsigned, '0', '9', last)
	b.digits(last, maxPower-1, end)
}

// digits allows up to n digits.
func (b *builder) digits(from int32, n int, to int32) {
	b.skip(from, to)
	for range n {
		next := b.state()
		b.bytes(from, '0', '9', next)
		b.skip(next, to)
		from = next
	}
}

// decimal is a bound of a magnitude: its digits.
type decimal struct {
	none        bool
	open        bool
	whole, frac string
}

func newDecimal(b bound) (decimal, bool) {
	if b.at == nil {
		return decimal{none: true}, true
	}
	places, exact := b.at.FloatPrec()
	if !exact || places > maxExponent {
		return decimal{}, false
	}
	whole, frac, _ := strings.Cut(b.at.FloatString(places), ".")
	return decimal{whole: whole, frac: frac, open: b.open}, true
}

// against is how the digits so far compare with a bound's: −1, 0 or 1. A whole part of another length is known to differ at its end only.
type against struct {
	digits  int16 // before the point, at most one more than the bound has
	compare int8
}

func (d *decimal) whole1(a against, b byte) against {
	if d.none {
		return a
	}
	if int(a.digits) < len(d.whole) {
		if a.compare == 0 {
			a.compare = order(b, d.whole[a.digits])
		}
		a.digits++
	} else {
		a.digits = int16(len(d.whole)) + 1
	}
	return a
}

// point is the comparison at the end of the whole part.
func (d *decimal) point(a against) against {
	if d.none {
		return a
	}
	switch n := len(d.whole); {
	case int(a.digits) < n:
		a.compare = -1
	case int(a.digits) > n:
		a.compare = 1
	}
	return against{compare: a.compare}
}

// frac1 compares the digit at a place behind the point.
func (d *decimal) frac1(a against, b byte, place int) against {
	if !d.none && a.compare == 0 {
		want := byte('0')
		if place < len(d.frac) {
			want = d.frac[place]
		}
		a.compare = order(b, want)
	}
	return a
}

// over is the comparison at a number's end, places digits behind the point.
func (d *decimal) over(a against, places int) int8 {
	if a.compare == 0 && places < len(d.frac) && strings.Trim(d.frac[places:], "0") != "" {
		return -1
	}
	return a.compare
}

func order(a, b byte) int8 {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// numberState is what must be known of a number's beginning.
type numberState struct {
	phase     byte // 's'tart, '-', '0' (nothing may follow but the point), 'w'hole, '.', 'f'raction
	negative  bool
	any       bool // a digit but 0 was read
	whole     int16
	frac      int16
	low, high against // the bounds of the magnitude
	rest      int32   // of the digits so far, point left out, by the multiple
}

// rule makes the automaton of numbers with bounds or a multiple.
func (n *numberSpec) rule(at string) (*rule, error) {
	// Of the magnitudes of numbers of either sign: their bounds.
	zero := new(big.Rat)
	neg := func(b bound) bound {
		if b.at == nil {
			return b
		}
		return bound{new(big.Rat).Neg(b.at), b.open}
	}
	atLeast := bound{zero, false}
	sides := [2]struct {
		low, high decimal
		possible  bool
	}{}
	whole, places := maxWhole, maxFraction
	for i, s := range [2][2]bound{{n.low.and(atLeast, 1), n.high}, {neg(n.high).and(bound{zero, true}, 1), neg(n.low)}} {
		sides[i].possible = s[1].at == nil || s[0].at.Cmp(s[1].at) < 0 || s[0].at.Cmp(s[1].at) == 0 && !s[0].open && !s[1].open
		var ok1, ok2 bool
		sides[i].low, ok1 = newDecimal(s[0])
		sides[i].high, ok2 = newDecimal(s[1])
		if !ok1 || !ok2 {
			return nil, bad(at, "a bound has more digits than are supported")
		}
		for _, d := range []decimal{sides[i].low, sides[i].high} {
			if sides[i].possible {
				whole, places = max(whole, len(d.whole)), max(places, len(d.frac)+2)
			}
		}
	}
	modulus, scale := int64(1), 0
	if n.multiple != nil {
		var exact bool
		scale, exact = n.multiple.FloatPrec()
		m := new(big.Int)
		if exact && scale <= maxExponent {
			m.SetString(strings.Replace(n.multiple.FloatString(scale), ".", "", 1), 10)
		}
		if !exact || !m.IsInt64() || m.Int64() > maxMultiple {
			return nil, bad(at+"/multipleOf", "is supported up to %d, its decimal point left out", maxMultiple)
		}
		modulus, places = m.Int64(), scale
	}
	if n.whole {
		places = 0
	}
	tens := make([]int64, scale+1)
	tens[0] = 1 % modulus
	for i := range scale {
		tens[i+1] = tens[i] * 10 % modulus
	}
	step := func(s numberState, b byte) (numberState, bool) {
		side := &sides[0]
		if s.negative {
			side = &sides[1]
		}
		if s.phase == 's' || s.phase == '-' {
			if b == '-' && s.phase == 's' && sides[1].possible {
				return numberState{phase: '-', negative: true}, true
			}
			if b < '0' || b > '9' || !side.possible {
				return s, false
			}
			s.phase = 'w'
			if b == '0' {
				s.phase = '0'
			}
		} else if b == '.' {
			if s.phase != 'w' && s.phase != '0' || places == 0 {
				return s, false
			}
			s.phase = '.'
			s.low, s.high, s.whole = side.low.point(s.low), side.high.point(s.high), 0
			return s, true
		} else if b < '0' || b > '9' || s.phase == '0' {
			return s, false
		}
		s.any = s.any || b != '0'
		s.rest = int32((int64(s.rest)*10 + int64(b-'0')) % modulus)
		if s.phase == '.' || s.phase == 'f' {
			if int(s.frac) >= places {
				return s, false
			}
			s.low, s.high = side.low.frac1(s.low, b, int(s.frac)), side.high.frac1(s.high, b, int(s.frac))
			s.phase = 'f'
			s.frac++
			return s, true
		}
		if int(s.whole) >= whole {
			return s, false
		}
		s.low, s.high = side.low.whole1(s.low, b), side.high.whole1(s.high, b)
		s.whole++
		return s, true
	}
	final := func(s numberState) bool {
		side := &sides[0]
		if s.negative {
			side = &sides[1]
		}
		switch s.phase {
		case '0', 'w':
			s.low, s.high = side.low.point(s.low), side.high.point(s.high)
		case 'f':
		default:
			return false
		}
		if s.negative && !s.any {
			return false
		}
		if !side.low.none {
			if c := side.low.over(s.low, int(s.frac)); c < 0 || c == 0 && side.low.open {
				return false
			}
		}
		if !side.high.none {
			if c := side.high.over(s.high, int(s.frac)); c > 0 || c == 0 && side.high.open {
				return false
			}
		}
		return int64(s.rest)*tens[max(scale-int(s.frac), 0)]%modulus == 0
	}
	r := explore(numberState{phase: 's'}, "-.0123456789", step, final, maxStates)
	if r == nil {
		return nil, bad(at, "the bounds need more than %d states", maxStates)
	}
	return r, nil
}

// explore makes a rule of an automaton that is given by its steps. It returns nil where there are more than limit states.
func explore[S comparable](first S, alphabet string, step func(S, byte) (S, bool), final func(S) bool, limit int) *rule {
	r := &rule{width: len(alphabet) + 1}
	for i := range r.class {
		r.class[i] = uint8(len(alphabet))
	}
	for i := range len(alphabet) {
		r.class[alphabet[i]] = uint8(i)
	}
	ids := map[S]int32{first: 0}
	todo := []S{first}
	for n := 0; n < len(todo); n++ {
		if n > limit {
			return nil
		}
		for i := range len(alphabet) {
			to := int32(-1)
			if s, ok := step(todo[n], alphabet[i]); ok {
				id, known := ids[s]
				if !known {
					id = int32(len(todo))
					ids[s] = id
					todo = append(todo, s)
				}
				to = id
			}
			r.next = append(r.next, to)
		}
		r.next = append(r.next, -1)
		r.final = append(r.final, final(todo[n]))
	}
	r.states = int32(len(todo))
	return r
}
