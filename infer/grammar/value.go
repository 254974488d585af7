package grammar

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"slices"
	"strings"
	"unicode/utf8"
)

// kind is a JSON type; kinds is a set of them. An integer is a number without a fraction, and not a kind of its own.
type (
	kind  uint8
	kinds uint8
)

const (
	null kind = 1 << iota
	boolean
	number
	text
	array
	object
	integral // only as a member of kinds: numbers, but integers alone
)

const anyKind = kinds(null | boolean | number | text | array | object)

// value is a JSON value whose objects keep their order.
type value struct {
	kind    kind
	truth   bool
	literal string   // of a number as it was written
	rat     *big.Rat // the number
	str     string
	list    []value // of an array, or the values of an object
	keys    []string
	places  map[string]int // of the keys
}

// maxDepth is how deep a schema and its values may be nested.
const maxDepth = 200

// maxPlaces bounds what naming all values of a schema takes, in bytes of their pointers together: each is a string of its own.
const maxPlaces = 16 << 20

// maxExponent bounds numbers in a schema: 1e400 as a rational has 400 digits.
const maxExponent = 400

// parseValue reads one JSON value.
func parseValue(raw []byte) (value, error) {
	if !utf8.Valid(raw) {
		return value{}, bad("", "not UTF-8")
	}
	d := reader{json.NewDecoder(bytes.NewReader(raw)), maxPlaces}
	d.UseNumber()
	v, err := d.value("", 0)
	if err != nil {
		return value{}, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return value{}, bad("", "more than one JSON value")
	}
	return v, nil
}

// reader reads values.
type reader struct {
	*json.Decoder
	left int // of maxPlaces
}

func (d *reader) value(at string, depth int) (value, error) {
	if d.left -= len(at); d.left < 0 {
		return value{}, bad("", "the keys are too long for so many values below them")
	}
	if depth > maxDepth {
		return value{}, bad(at, "nested deeper than %d", maxDepth)
	}
	t, err := d.Token()
	if err != nil {
		return value{}, bad(at, "not JSON: %s", err)
	}
	switch t := t.(type) {
	case nil:
		return value{kind: null}, nil
	case bool:
		return value{kind: boolean, truth: t}, nil
	case string:
		return value{kind: text, str: t}, nil
	case json.Number:
		return readNumber(string(t), at)
	case json.Delim:
		v := value{kind: array}
		if t == '{' {
			v.kind = object
		}
		for i := 0; d.More(); i++ {
			next := fmt.Sprintf("%s/%d", at, i)
			var key string
			if v.kind == object {
				k, err := d.Token()
				if err != nil {
					return value{}, bad(at, "not JSON: %s", err)
				}
				key = k.(string)
				next = at + "/" + escapePointer(key)
			}
			e, err := d.value(next, depth+1)
			if err != nil {
				return value{}, err
			}
			if v.kind == object {
				if _, ok := v.places[key]; ok {
					return value{}, bad(next, "the key occurs twice")
				}
				if v.places == nil {
					v.places = map[string]int{}
				}
				v.places[key] = i
				v.keys = append(v.keys, key)
			}
			v.list = append(v.list, e)
		}
		if _, err := d.Token(); err != nil {
			return value{}, bad(at, "not JSON: %s", err)
		}
		return v, nil
	}
	return value{}, bad(at, "not JSON")
}

func readNumber(s, at string) (value, error) {
	if i := strings.IndexAny(s, "eE"); i >= 0 {
		if digits := strings.TrimLeft(s[i+1:], "+-0"); len(digits) > 3 || len(digits) == 3 && digits > fmt.Sprint(maxExponent) {
			return value{}, bad(at, "the number %.40s is out of range", s)
		}
	}
	r, ok := new(big.Rat).SetString(s)
	if !ok || len(s) > 2*maxExponent {
		return value{}, bad(at, "the number %.40s is out of range", s)
	}
	return value{kind: number, literal: s, rat: r}, nil
}

// number writes a number: an integer without a point, others as they were written.
func (v *value) number() string {
	if v.rat.IsInt() && v.rat.Num().BitLen() < 63 {
		return v.rat.Num().String()
	}
	return v.literal
}

func escapePointer(key string) string {
	return strings.ReplaceAll(strings.ReplaceAll(key, "~", "~0"), "/", "~1")
}

// among reports whether a value is in a list.
func (v *value) among(list []value, steps *int) bool {
	return slices.ContainsFunc(list, func(o value) bool { return v.equal(&o, steps) })
}

// get is the value of a key, nil where there is none.
func (v *value) get(key string) *value {
	if i, ok := v.places[key]; ok {
		return &v.list[i]
	}
	return nil
}

// equal compares as JSON Schema does: numbers by value, objects without order. It adds to steps what that took.
func (v *value) equal(o *value, steps *int) bool {
	*steps++
	if v.kind != o.kind || len(v.list) != len(o.list) {
		return false
	}
	switch v.kind {
	case boolean:
		return v.truth == o.truth
	case number:
		*steps += (len(v.literal) + len(o.literal)) / 8
		return v.rat.Cmp(o.rat) == 0
	case text:
		return v.str == o.str
	case object:
		for i, k := range v.keys {
			if e := o.get(k); e == nil || !v.list[i].equal(e, steps) {
				return false
			}
		}
	case array:
		for i := range v.list {
			if !v.list[i].equal(&o.list[i], steps) {
				return false
			}
		}
	}
	return true
}

// quoteJSON writes a string as a JSON string with the fewest escapes.
func quoteJSON(s string) string {
	b := []byte{'"'}
	for i := range len(s) {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c < 0x20:
			if short := shortEscape(rune(c)); short != 0 {
				b = append(b, '\\', short)
			} else {
				b = fmt.Appendf(b, `\u%04x`, c)
			}
		default:
			b = append(b, c)
		}
	}
	return string(append(b, '"'))
}

// shortEscape is the letter of a character's escape of two bytes, 0 for none.
func shortEscape(r rune) byte {
	switch r {
	case '"', '\\':
		return byte(r)
	case '\b':
		return 'b'
	case '\f':
		return 'f'
	case '\n':
		return 'n'
	case '\r':
		return 'r'
	case '\t':
		return 't'
	}
	return 0
}
