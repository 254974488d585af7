package grammar

import (
	"math/big"
)

// bound is an end of a range of numbers; a nil at means that there is none.
type bound struct {
	at   *big.Rat
	open bool // the number itself is outside
}

// tighten makes a bound at least as tight as a number; side is 1 for a lower one, −1 for an upper one.
func (b *bound) tighten(v *value, open bool, side int, at string) error {
	if v.kind != number {
		return bad(at, "must be a number")
	}
	*b = b.and(bound{v.rat, open}, side)
	return nil
}

// and is the tighter of two bounds.
func (b bound) and(o bound, side int) bound {
	switch {
	case o.at == nil:
		return b
	case b.at == nil:
		return o
	}
	switch b.at.Cmp(o.at) * side {
	case 1:
		return b
	case -1:
		return o
	}
	return bound{b.at, b.open || o.open}
}
