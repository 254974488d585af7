package grammar

import (
	"math/big"
	"slices"
	"unicode/utf8"
)

// satisfies reports whether a value of an enum or const satisfies all of some schemas.
func (c *compiler) satisfies(v *value, s conj) (bool, error) {
	all, err := c.alternatives(s)
	if err != nil {
		return false, err
	}
	for _, f := range all {
		ok := true
		for _, x := range f {
			if ok, err = c.own(v, x); !ok || err != nil {
				break
			}
		}
		if ok || err != nil {
			return ok, err
		}
	}
	return false, nil
}

// own checks a value against a schema's own keywords.
func (c *compiler) own(v *value, s *schema) (bool, error) {
	if err := c.work.spend(8+len(s.required)+len(v.keys), s.at); err != nil {
		return false, err
	}
	if s.kinds&kinds(v.kind) == 0 || v.kind == number && s.kinds&kinds(integral) != 0 && !v.rat.IsInt() {
		return false, nil
	}
	if s.enums {
		steps := 0
		found := v.among(s.enum, &steps)
		if err := c.work.spend(steps, s.at); err != nil || !found {
			return false, err
		}
	}
	switch v.kind {
	case number:
		if s.multiple != nil && !new(big.Rat).Quo(v.rat, s.multiple).IsInt() {
			return false, nil
		}
		return s.low.admits(v.rat, 1) && s.high.admits(v.rat, -1), nil
	case text:
		if n := utf8.RuneCountInString(v.str); n < s.minLength || s.maxLength >= 0 && n > s.maxLength {
			return false, nil
		}
		if s.pattern == nil && formats[s.format] == "" {
			return true, nil
		}
		d, err := c.textDFA(flat{s})
		return err == nil && d.match(v.str), err
	case array:
		if n := len(v.list); n < s.minItems || s.maxItems >= 0 && n > s.maxItems {
			return false, nil
		}
		for i := range v.list {
			if ok, err := c.satisfies(&v.list[i], flat{s}.item(i)); !ok || err != nil {
				return false, err
			}
		}
	case object:
		if n := len(v.keys); n < s.minProperties || s.maxProperties >= 0 && n > s.maxProperties {
			return false, nil
		}
		for _, name := range s.required {
			if v.get(name) == nil {
				return false, nil
			}
		}
		for i, name := range v.keys {
			if ok, err := c.named(flat{s}, name); !ok || err != nil {
				return false, err
			}
			of, err := c.propertyOf(s, name)
			if err != nil {
				return false, err
			}
			if ok, err := c.satisfies(&v.list[i], of); !ok || err != nil {
				return false, err
			}
		}
	}
	return true, nil
}

// admits reports whether a number is on the right side; side is 1 for a lower bound, −1 for an upper one.
func (b bound) admits(x *big.Rat, side int) bool {
	if b.at == nil {
		return true
	}
	c := x.Cmp(b.at) * side
	return c > 0 || c == 0 && !b.open
}

// maxApart is how deep disjoint looks.
const maxApart = 6

// disjoint reports whether it is certain that no value of some types satisfies both a and b.
func (c *compiler) disjoint(a, b conj, types kinds, depth int) (bool, error) {
	if depth > maxApart {
		return false, nil
	}
	as, err := c.alternatives(a)
	if err != nil {
		return false, err
	}
	bs, err := c.alternatives(b)
	if err != nil {
		return false, err
	}
	for _, f := range as {
		for _, g := range bs {
			if ok, err := c.disjointFlats(f, g, types, depth); !ok || err != nil {
				return false, err
			}
		}
	}
	return true, nil
}

func (c *compiler) disjointFlats(f, g flat, types kinds, depth int) (bool, error) {
	for _, pair := range [][2]flat{{f, g}, {g, f}} {
		values, limited, err := c.enum(pair[0])
		if err != nil {
			return false, err
		}
		if !limited {
			continue
		}
		for _, v := range values {
			if types&kinds(v.kind) == 0 {
				continue
			}
			if ok, err := c.satisfies(&v, conj(pair[1])); ok || err != nil {
				return false, err
			}
		}
		return true, nil
	}
	both := types.and(f.kinds()).and(g.kinds())
	for k := null; k <= object; k <<= 1 {
		if both&kinds(k) == 0 {
			continue
		}
		ok, err := false, error(nil)
		switch k {
		case number:
			n := numberSpec{}
			for _, s := range slices.Concat(f, g) {
				n.low, n.high = n.low.and(s.low, 1), n.high.and(s.high, -1)
			}
			if n.low.at != nil && n.high.at != nil {
				order := n.low.at.Cmp(n.high.at)
				ok = order > 0 || order == 0 && (n.low.open || n.high.open)
			}
		case text:
			d, e := c.textDFA(slices.Concat(f, g))
			ok, err = e == nil && d.empty(), e
		case array:
			ok, err = c.disjointArrays(f, g, depth)
		case object:
			ok, err = c.disjointObjects(f, g, depth)
		}
		if !ok || err != nil {
			return false, err
		}
	}
	return true, nil
}

func (c *compiler) disjointArrays(f, g flat, depth int) (bool, error) {
	least, most := 0, -1
	for _, s := range slices.Concat(f, g) {
		least = max(least, s.minItems)
		if s.maxItems >= 0 && (most < 0 || s.maxItems < most) {
			most = s.maxItems
		}
	}
	if most >= 0 && least > most {
		return true, nil
	}
	for i := range min(least, 8) { // an item that is there in any case
		if ok, err := c.disjoint(f.item(i), g.item(i), anyKind, depth+1); ok || err != nil {
			return ok, err
		}
	}
	return false, nil
}

func (c *compiler) disjointObjects(f, g flat, depth int) (bool, error) {
	for _, s := range slices.Concat(f, g) {
		for _, name := range s.required { // a property that is there in any case
			a, err := c.property(f, name)
			if err != nil {
				return false, err
			}
			b, err := c.property(g, name)
			if err != nil {
				return false, err
			}
			if ok, err := c.disjoint(a, b, anyKind, depth+1); ok || err != nil {
				return ok, err
			}
		}
	}
	return false, nil
}
