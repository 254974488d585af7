package tokenizer

import (
	"encoding/json"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/dlclark/regexp2"
)

// matcher finds the matches in s in order, without overlap.
type matcher interface {
	find(s string, emit func(start, end int))
}

// patternJSON is {"String": …} or {"Regex": …}.
type patternJSON struct {
	String *string
	Regex  *string
}

func (p *patternJSON) matcher(where string) (matcher, error) {
	switch {
	case p == nil || p.String == nil && p.Regex == nil:
		return nil, fmt.Errorf("%w: %s has neither a String nor a Regex pattern", ErrFormat, where)
	case p.String != nil:
		return literal(*p.String), nil
	}
	if t := knownScanner(*p.Regex); t != nil {
		return t, nil
	}
	return compileRegex(*p.Regex, where)
}

// replacement reads a Replace of a normalizer or decoder: what is replaced, and by what.
func replacement(raw json.RawMessage, where string) (m matcher, content string, err error) {
	var f struct {
		Pattern *patternJSON
		Content string
	}
	if err := fields(raw, &f, where); err != nil {
		return nil, "", err
	}
	m, err = f.Pattern.matcher(where)
	return m, f.Content, err
}

func compileRegex(pattern, where string) (matcher, error) {
	re, err := regexp2.Compile(pattern, regexp2.Unicode)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: pattern %q: %v", ErrUnsupported, where, pattern, err)
	}
	return regex{re}, nil
}

type literal string

func (p literal) find(s string, emit func(start, end int)) {
	if p == "" {
		return
	}
	for i := 0; ; {
		k := strings.Index(s[i:], string(p))
		if k < 0 {
			return
		}
		emit(i+k, i+k+len(p))
		i += k + len(p)
	}
}

type regex struct{ re *regexp2.Regexp }

func (p regex) find(s string, emit func(start, end int)) {
	runes := []rune(s)
	at, i := 0, 0 // byte offset of rune i
	offset := func(to int) int {
		for ; i < to; i++ {
			at += utf8.RuneLen(runes[i])
		}
		return at
	}
	m, err := p.re.FindRunesMatch(runes)
	for err == nil && m != nil { // an error is a time limit, and none is set
		start := offset(m.Index)
		emit(start, offset(m.Index+m.Length))
		m, err = p.re.FindNextMatch(m)
	}
}

// runeMatcher matches each single character of a kind.
type runeMatcher func(r rune) bool

func (p runeMatcher) find(s string, emit func(start, end int)) {
	for i, r := range s {
		if p(r) {
			emit(i, i+utf8.RuneLen(r))
		}
	}
}

// replaceAll returns s with each match replaced.
func replaceAll(s string, m matcher, content string) string {
	if p, ok := m.(literal); ok {
		if p == "" {
			return s
		}
		return strings.ReplaceAll(s, string(p), content)
	}
	var w strings.Builder
	last := 0
	m.find(s, func(start, end int) {
		w.WriteString(s[last:start])
		w.WriteString(content)
		last = end
	})
	if last == 0 && w.Len() == 0 {
		return s
	}
	w.WriteString(s[last:])
	return w.String()
}

// kindOf reads the "type" of a component; "" for null or an absent one.
func kindOf(raw json.RawMessage, where string) (string, error) {
	if isNull(raw) {
		return "", nil
	}
	var k struct{ Type *string }
	if err := json.Unmarshal(raw, &k); err != nil {
		return "", fmt.Errorf("%w: %s: %v", ErrFormat, where, err)
	}
	if k.Type == nil || *k.Type == "" {
		return "", fmt.Errorf("%w: %s has no type", ErrFormat, where)
	}
	return *k.Type, nil
}

func isNull(raw json.RawMessage) bool { return len(raw) == 0 || string(raw) == "null" }

func fields(raw json.RawMessage, into any, where string) error {
	if err := json.Unmarshal(raw, into); err != nil {
		return fmt.Errorf("%w: %s: %v", ErrFormat, where, err)
	}
	return nil
}

func unsupported(where, kind string) error {
	return fmt.Errorf("%w: %s of type %q", ErrUnsupported, where, kind)
}

func oneRune(s, where string) (rune, error) {
	r, n := utf8.DecodeRuneInString(s)
	if n == 0 || n != len(s) {
		return 0, fmt.Errorf("%w: %s %q is not one character", ErrFormat, where, s)
	}
	return r, nil
}
