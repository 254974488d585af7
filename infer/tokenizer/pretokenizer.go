package tokenizer

import (
	"encoding/json"
	"fmt"
	"strings"
	"unicode"
)

// piece is a part of the text on its way to the model.
type piece struct {
	text  string
	first bool // begins where the whole text begins
}

// preTokenizer splits a piece. Empty pieces are dropped by emit.
type preTokenizer interface {
	split(p piece, emit func(piece))
}

// parsePreTokenizer appends to out the steps of a pre-tokenizer, sequences unrolled.
func parsePreTokenizer(raw json.RawMessage, where string, out []preTokenizer) ([]preTokenizer, error) {
	kind, err := kindOf(raw, where)
	if err != nil || kind == "" {
		return out, err
	}
	switch kind {
	case "Sequence":
		var f struct{ Pretokenizers []json.RawMessage }
		if err := fields(raw, &f, where); err != nil {
			return nil, err
		}
		for _, r := range f.Pretokenizers {
			if out, err = parsePreTokenizer(r, where, out); err != nil {
				return nil, err
			}
		}
		return out, nil
	case "ByteLevel":
		f := struct {
			AddPrefixSpace bool  `json:"add_prefix_space"`
			UseRegex       *bool `json:"use_regex"`
		}{AddPrefixSpace: true}
		if err := fields(raw, &f, where); err != nil {
			return nil, err
		}
		return append(out, newByteLevel(f.AddPrefixSpace, f.UseRegex == nil || *f.UseRegex)), nil
	case "Digits":
		var f struct {
			Individual bool `json:"individual_digits"`
		}
		if err := fields(raw, &f, where); err != nil {
			return nil, err
		}
		behavior := "Contiguous"
		if f.Individual {
			behavior = "Isolated"
		}
		return append(out, splitter{m: runeMatcher(unicode.IsNumber), behavior: behavior}), nil
	case "Split":
		var f struct {
			Pattern  *patternJSON
			Behavior string
			Invert   bool
		}
		if err := fields(raw, &f, where); err != nil {
			return nil, err
		}
		m, err := f.Pattern.matcher(where)
		if err != nil {
			return nil, err
		}
		switch f.Behavior {
		case "Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous":
		default:
			return nil, fmt.Errorf("%w: %s: behavior %q", ErrUnsupported, where, f.Behavior)
		}
		return append(out, splitter{m, f.Behavior, f.Invert}), nil
	case "Metaspace":
		m, err := parseMetaspace(raw, where)
		if err != nil {
			return nil, err
		}
		return append(out, m), nil
	}
	return nil, unsupported(where, kind)
}

// splitter cuts at a pattern's matches.
type splitter struct {
	m        matcher
	behavior string // what becomes of a match, in the words of tokenizer.json
	invert   bool   // matches and what lies between them change places
}

type span struct {
	start, end int
	match      bool
}

func (t splitter) split(p piece, emit func(piece)) {
	send := func(start, end int) {
		if start < end {
			emit(piece{p.text[start:end], p.first && start == 0})
		}
	}
	last := 0
	if s, ok := t.m.(*scanner); ok && (t.behavior == "Isolated" || t.behavior == "Removed" && t.invert) {
		s.find(p.text, send) // the matches cover the text
		return
	}
	if t.behavior == "Isolated" {
		t.m.find(p.text, func(start, end int) {
			send(last, start)
			send(start, end)
			last = end
		})
		send(last, len(p.text))
		return
	}
	var spans []span
	t.m.find(p.text, func(start, end int) {
		if last != start {
			spans = append(spans, span{last, start, t.invert})
		}
		spans = append(spans, span{start, end, !t.invert})
		last = end
	})
	if last != len(p.text) {
		spans = append(spans, span{last, len(p.text), t.invert})
	}
	for _, s := range joinSpans(spans, t.behavior) {
		send(s.start, s.end)
	}
}

// joinSpans applies a behavior to spans that cover a text.
func joinSpans(spans []span, behavior string) []span {
	var out []span
	before := false // whether the span before was a match
	switch behavior {
	case "Removed":
		for _, s := range spans {
			if !s.match {
				out = append(out, s)
			}
		}
	case "Contiguous":
		for _, s := range spans {
			if s.match == before && len(out) > 0 {
				out[len(out)-1].end = s.end
			} else {
				out = append(out, s)
			}
			before = s.match
		}
	case "MergedWithPrevious":
		for _, s := range spans {
			if s.match && !before && len(out) > 0 {
				out[len(out)-1].end = s.end
			} else {
				out = append(out, s)
			}
			before = s.match
		}
	case "MergedWithNext":
		for i := range spans {
			s := spans[len(spans)-1-i]
			if s.match && !before && len(out) > 0 {
				out[len(out)-1].start = s.start
			} else {
				out = append(out, s)
			}
			before = s.match
		}
		for i, j := 0, len(out)-1; i < j; i, j = i+1, j-1 {
			out[i], out[j] = out[j], out[i]
		}
	}
	return out
}

// byteLevel writes bytes in GPT-2's alphabet, after cutting by GPT-2's pattern if it has one.
type byteLevel struct {
	prefixSpace bool
	scan        *scanner // nil: no cutting
	plain       bool     // the model takes bytes: no rewriting
}

func newByteLevel(prefixSpace, cut bool) *byteLevel {
	b := &byteLevel{prefixSpace: prefixSpace}
	if cut {
		b.scan = knownScanner(patternGPT2)
	}
	return b
}

func (t *byteLevel) split(p piece, emit func(piece)) {
	if t.prefixSpace && p.text != "" && p.text[0] != ' ' {
		p.text = " " + p.text
	}
	send := func(start, end int) {
		s := p.text[start:end]
		if !t.plain {
			s = toAlphabet(s)
		}
		if s != "" {
			emit(piece{s, p.first && start == 0})
		}
	}
	if t.scan == nil {
		send(0, len(p.text))
		return
	}
	t.scan.find(p.text, send)
}

// metaspace is SentencePiece's way with spaces.
type metaspace struct {
	replacement string
	scheme      string // always, first or never is the replacement put in front
	cut         bool
}

func parseMetaspace(raw json.RawMessage, where string) (*metaspace, error) {
	var f struct {
		Replacement    string
		AddPrefixSpace *bool   `json:"add_prefix_space"`
		PrependScheme  *string `json:"prepend_scheme"`
		Split          *bool
	}
	if err := fields(raw, &f, where); err != nil {
		return nil, err
	}
	if _, err := oneRune(f.Replacement, where+": replacement"); err != nil {
		return nil, err
	}
	m := &metaspace{replacement: f.Replacement, scheme: "always", cut: f.Split == nil || *f.Split}
	if f.PrependScheme != nil {
		m.scheme = *f.PrependScheme
	}
	if f.AddPrefixSpace != nil && !*f.AddPrefixSpace {
		if f.PrependScheme != nil && m.scheme != "never" {
			return nil, fmt.Errorf("%w: %s: add_prefix_space is false and prepend_scheme is %q", ErrFormat, where, m.scheme)
		}
		m.scheme = "never"
	}
	switch m.scheme {
	case "always", "first", "never":
		return m, nil
	}
	return nil, fmt.Errorf("%w: %s: prepend_scheme %q", ErrUnsupported, where, m.scheme)
}

func (t *metaspace) split(p piece, emit func(piece)) {
	s := strings.ReplaceAll(p.text, " ", t.replacement)
	if s != "" && !strings.HasPrefix(s, t.replacement) && (t.scheme == "always" || t.scheme == "first" && p.first) {
		s = t.replacement + s
	}
	if t.cut {
		splitter{m: literal(t.replacement), behavior: "MergedWithNext"}.split(piece{s, p.first}, emit)
	} else if s != "" {
		emit(piece{s, p.first})
	}
}
