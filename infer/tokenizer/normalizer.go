package tokenizer

import (
	"encoding/json"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// normalizer rewrites a piece of text; nil is the identity.
type normalizer func(s string) string

func (n normalizer) apply(s string) string {
	if n == nil {
		return s
	}
	return n(s)
}

func parseNormalizer(raw json.RawMessage, where string) (normalizer, error) {
	kind, err := kindOf(raw, where)
	if err != nil || kind == "" {
		return nil, err
	}
	switch kind {
	case "NFC":
		return unicodeForm(norm.NFC), nil
	case "NFD":
		return unicodeForm(norm.NFD), nil
	case "NFKC":
		return unicodeForm(norm.NFKC), nil
	case "NFKD":
		return unicodeForm(norm.NFKD), nil
	case "Lowercase":
		return lowercase, nil
	case "Prepend":
		var f struct{ Prepend string }
		if err := fields(raw, &f, where); err != nil {
			return nil, err
		}
		return prepend(f.Prepend), nil
	case "Replace":
		m, content, err := replacement(raw, where)
		if err != nil {
			return nil, err
		}
		return func(s string) string { return replaceAll(s, m, content) }, nil
	case "Strip":
		var f struct {
			Left  bool `json:"strip_left"`
			Right bool `json:"strip_right"`
		}
		if err := fields(raw, &f, where); err != nil {
			return nil, err
		}
		return func(s string) string {
			if f.Left {
				s = strings.TrimLeftFunc(s, unicode.IsSpace)
			}
			if f.Right {
				s = strings.TrimRightFunc(s, unicode.IsSpace)
			}
			return s
		}, nil
	case "Sequence":
		var f struct{ Normalizers []json.RawMessage }
		if err := fields(raw, &f, where); err != nil {
			return nil, err
		}
		var all []normalizer
		for _, r := range f.Normalizers {
			n, err := parseNormalizer(r, where)
			if err != nil {
				return nil, err
			}
			all = append(all, n)
		}
		return normalizers(all...), nil
	}
	return nil, unsupported(where, kind)
}

func normalizers(all ...normalizer) normalizer {
	return func(s string) string {
		for _, n := range all {
			s = n.apply(s)
		}
		return s
	}
}

func prepend(p string) normalizer {
	return func(s string) string {
		if s == "" {
			return s
		}
		return p + s
	}
}

func lowercase(s string) string {
	var w strings.Builder
	w.Grow(len(s))
	for _, r := range s {
		if r == 'İ' { // the one letter whose lower case is two characters
			w.WriteString("i\u0307")
			continue
		}
		w.WriteRune(unicode.ToLower(r))
	}
	return w.String()
}

// unicodeForm is a Unicode normal form. x/text's own keeps to the stream-safe format: it puts U+034F into runs of more than 30
// marks, which nobody else does. Texts with long runs of marks therefore take a slow way of their own.
func unicodeForm(f norm.Form) normalizer {
	form := func(s string) string {
		if f.IsNormalString(s) && !longMarks(s) {
			return s
		}
		if longMarks(s) {
			return normalForm(f, s)
		}
		return f.String(s)
	}
	isInert := func(r rune) bool { return r >= inert[0].lo && inRanges(inert, r) }
	return func(s string) string {
		if strings.IndexFunc(s, isInert) < 0 {
			return form(s)
		}
		var w strings.Builder
		for s != "" {
			k := strings.IndexFunc(s, isInert)
			if k < 0 {
				k = len(s)
			}
			w.WriteString(form(s[:k]))
			_, n := utf8.DecodeRuneInString(s[k:])
			w.WriteString(s[k : k+n])
			s = s[k+n:]
		}
		return w.String()
	}
}

// longMarks tells whether s has a run of characters that might decompose to more than 30 non-starters.
func longMarks(s string) bool {
	run := 0
	for i, r := range s {
		if r < 0x300 {
			run = 0
			continue
		}
		p := norm.NFKD.PropertiesString(s[i:])
		if p.CCC() == 0 && p.TrailCCC() == 0 {
			run = 0
		} else if run++; run > 7 { // no character decomposes to more than four non-starters
			return true
		}
	}
	return false
}

// normalForm is the standard's own algorithm: decompose, order by class, compose.
func normalForm(f norm.Form, s string) string {
	decompose := norm.NFD
	if f == norm.NFKC || f == norm.NFKD {
		decompose = norm.NFKD
	}
	type char struct {
		r     rune
		class uint8
	}
	var chars []char
	marks := 0 // where the marks at the end begin
	order := func() {
		slices.SortStableFunc(chars[marks:], func(a, b char) int { return int(a.class) - int(b.class) })
		marks = len(chars)
	}
	for i := 0; i < len(s); {
		_, n := utf8.DecodeRuneInString(s[i:])
		d := decompose.String(s[i : i+n]) // one character is never long
		for k, r := range d {
			c := norm.NFD.PropertiesString(d[k:]).CCC()
			if c == 0 {
				order()
				marks++
			}
			chars = append(chars, char{r, c})
		}
		i += n
	}
	order()
	out := make([]rune, 0, len(chars))
	if f == norm.NFD || f == norm.NFKD {
		for _, x := range chars {
			out = append(out, x.r)
		}
		return string(out)
	}
	starter, last := -1, uint8(0) // index in out of the last starter, class of the last character kept since
	for _, x := range chars {
		r, c := x.r, x.class
		if starter >= 0 && (last == 0 && starter == len(out)-1 || last < c && last != 0) {
			if both := []rune(norm.NFC.String(string([]rune{out[starter], r}))); len(both) == 1 {
				out[starter] = both[0]
				continue
			}
		}
		if c == 0 {
			starter = len(out)
		}
		last = c
		out = append(out, r)
	}
	return string(out)
}
