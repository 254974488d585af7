package tokenizer

import (
	"sync"
	"unicode"
	"unicode/utf8"
)

// class holds what the split patterns ask of a character.
type class uint8

const (
	letter   class = 1 << iota // \p{L}
	number                     // \p{N}
	space                      // \s, the property White_Space
	newline                    // \r or \n
	upperish                   // \p{Lu} \p{Lt} \p{Lm} \p{Lo} \p{M}
	lowerish                   // \p{Ll} \p{Lm} \p{Lo} \p{M}
)

const classRunes = 0x34000 // letters and marks beyond are only variation selectors, see class

// classes is the table of class by rune, filled once from package unicode's tables.
var classes = sync.OnceValue(func() *[classRunes]class {
	t := new([classRunes]class)
	set := func(c class, tables ...*unicode.RangeTable) {
		for _, rt := range tables {
			for _, r := range rt.R16 {
				for x := uint32(r.Lo); x <= uint32(r.Hi); x += uint32(r.Stride) {
					t[x] |= c
				}
			}
			for _, r := range rt.R32 {
				for x := r.Lo; x <= r.Hi && x < classRunes; x += r.Stride {
					t[x] |= c
				}
			}
		}
	}
	set(letter, unicode.L)
	set(number, unicode.N)
	set(space, unicode.White_Space)
	set(upperish, unicode.Lu, unicode.Lt, unicode.Lm, unicode.Lo, unicode.M)
	set(lowerish, unicode.Ll, unicode.Lm, unicode.Lo, unicode.M)
	for _, x := range noClass {
		for r := x.lo; r <= x.hi; r++ {
			t[r] = 0
		}
	}
	t[0x295] &^= upperish // a lower-case letter until Unicode 17
	t['\r'] |= newline
	t['\n'] |= newline
	return t
})

func (t *scanner) class(r rune) class {
	if r < classRunes {
		return t.classes[r]
	}
	var c class
	if unicode.Is(unicode.L, r) {
		c |= letter
	}
	if unicode.In(r, unicode.Lo, unicode.M) {
		c |= upperish | lowerish
	}
	return c
}

// at returns the class and length of the character at s[i:]; class 0 and length 0 at the end.
func (t *scanner) at(s string, i int) (class, int) {
	if i >= len(s) {
		return 0, 0
	}
	if b := s[i]; b < utf8.RuneSelf {
		return t.classes[b], 1
	}
	r, n := utf8.DecodeRuneInString(s[i:])
	return t.class(r), n
}

// run returns the end of the run of characters from i on that have any bit of c.
func (t *scanner) run(s string, i int, c class) int {
	for i < len(s) {
		k, n := t.at(s, i)
		if k&c == 0 {
			break
		}
		i += n
	}
	return i
}

// runNot returns the end of the run of characters from i on that have no bit of c.
func (t *scanner) runNot(s string, i int, c class) int {
	for i < len(s) {
		k, n := t.at(s, i)
		if k&c != 0 {
			break
		}
		i += n
	}
	return i
}

// isWord is \w of Unicode regular expressions: alphabetic, mark, decimal number, connector or joiner.
func isWord(r rune) bool {
	return unicode.In(r, unicode.L, unicode.Nl, unicode.Other_Alphabetic, unicode.M, unicode.Nd, unicode.Pc, unicode.Join_Control)
}
