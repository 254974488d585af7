package tokenizer

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// pipe runs token strings through decoder stages into out. A stage hands on fragments of tokens, so that text can be streamed
// through stages that make one token of all.
type pipe struct {
	stages []stage
	out    strings.Builder
}

// stage is one decoder at work on one list of tokens.
type stage interface {
	// push takes a fragment of the current token; last says that the token ends with it.
	push(p *pipe, at int, frag string, last bool)
	// flush hands on whatever is held back: no token follows.
	flush(p *pipe, at int)
}

// push hands a fragment to the stage at an index; behind the last stage is the output.
func (p *pipe) push(at int, frag string, last bool) {
	if at == len(p.stages) {
		p.out.WriteString(frag)
		return
	}
	p.stages[at].push(p, at, frag, last)
}

func (p *pipe) flush() {
	for i, s := range p.stages {
		s.flush(p, i)
	}
}

// take returns the output since the last call.
func (p *pipe) take() string {
	s := p.out.String()
	p.out.Reset()
	return s
}

// decoder makes a fresh stage.
type decoder func() stage

// parseDecoder appends to out the steps of a decoder, sequences unrolled.
func parseDecoder(raw json.RawMessage, where string, out []decoder) ([]decoder, error) {
	kind, err := kindOf(raw, where)
	if err != nil || kind == "" {
		return out, err
	}
	switch kind {
	case "Sequence":
		var f struct{ Decoders []json.RawMessage }
		if err := fields(raw, &f, where); err != nil {
			return nil, err
		}
		for _, r := range f.Decoders {
			if out, err = parseDecoder(r, where, out); err != nil {
				return nil, err
			}
		}
		return out, nil
	case "ByteLevel":
		return append(out, func() stage { return &byteLevelStage{} }), nil
	case "ByteFallback":
		return append(out, func() stage { return &byteFallbackStage{} }), nil
	case "Fuse":
		return append(out, func() stage { return fuseStage{} }), nil
	case "Replace":
		m, content, err := replacement(raw, where)
		if err != nil {
			return nil, err
		}
		return append(out, func() stage { return &replaceStage{m: m, content: content} }), nil
	case "Strip":
		var f struct {
			Content     string
			Start, Stop int
		}
		if err := fields(raw, &f, where); err != nil {
			return nil, err
		}
		r, err := oneRune(f.Content, where+": content")
		if err != nil {
			return nil, err
		}
		if f.Start < 0 || f.Stop < 0 {
			return nil, fmt.Errorf("%w: %s: strip %d and %d", ErrFormat, where, f.Start, f.Stop)
		}
		return append(out, func() stage { return &stripStage{content: r, start: f.Start, stop: f.Stop} }), nil
	case "Metaspace":
		m, err := parseMetaspace(raw, where)
		if err != nil {
			return nil, err
		}
		return append(out, func() stage { return &metaspaceStage{replacement: m.replacement, drop: m.scheme != "never"} }), nil
	}
	return nil, unsupported(where, kind)
}

// whole gathers the fragments of a token.
type whole struct{ held string }

// add returns the token when it is complete.
func (w *whole) add(frag string, last bool) (string, bool) {
	if !last {
		w.held += frag
		return "", false
	}
	s := w.held + frag
	w.held = ""
	return s, true
}

// joinStage puts a space between tokens: what is done where there is no decoder.
type joinStage struct{ inside, any bool }

func (t *joinStage) push(p *pipe, at int, frag string, last bool) {
	if !t.inside && t.any {
		p.push(at+1, " ", false)
	}
	t.any, t.inside = true, !last
	p.push(at+1, frag, last)
}
func (t *joinStage) flush(*pipe, int) {}

// byteLevelStage makes one token of all: the bytes that GPT-2's alphabet stands for, as UTF-8.
type byteLevelStage struct {
	token whole
	bytes []byte
}

func (t *byteLevelStage) push(p *pipe, at int, frag string, last bool) {
	s, ok := t.token.add(frag, last)
	if !ok {
		return
	}
	t.bytes, _ = appendAlphabet(t.bytes, s)
	var w strings.Builder
	if n := lossyPrefix(&w, t.bytes); n > 0 {
		t.bytes = t.bytes[:copy(t.bytes, t.bytes[n:])]
		p.push(at+1, w.String(), false)
	}
}

func (t *byteLevelStage) flush(p *pipe, at int) {
	p.push(at+1, lossy(string(t.bytes)), true)
	t.bytes = nil
}

// byteFallbackStage makes characters of runs of <0xNN>. A run that is not UTF-8 as a whole becomes as many U+FFFD as it has bytes,
// so that nothing of it can be told before it ends.
type byteFallbackStage struct {
	token whole
	bytes []byte
}

func (t *byteFallbackStage) push(p *pipe, at int, frag string, last bool) {
	s, ok := t.token.add(frag, last)
	if !ok {
		return
	}
	if b, ok := fallbackByte(s); ok {
		t.bytes = append(t.bytes, b)
		return
	}
	t.flush(p, at)
	p.push(at+1, s, true)
}

func (t *byteFallbackStage) flush(p *pipe, at int) {
	if utf8.Valid(t.bytes) {
		if len(t.bytes) > 0 {
			p.push(at+1, string(t.bytes), true)
		}
	} else {
		for range t.bytes {
			p.push(at+1, "\uFFFD", true)
		}
	}
	t.bytes = t.bytes[:0]
}

// fallbackByte reads <0xNN>.
func fallbackByte(s string) (byte, bool) {
	if len(s) != 6 || !strings.HasPrefix(s, "<0x") || s[5] != '>' {
		return 0, false
	}
	digits := s[3:5]
	if digits[0] == '+' { // Rust's from_str_radix takes a sign
		digits = digits[1:]
	}
	n, err := strconv.ParseUint(digits, 16, 8)
	return byte(n), err == nil
}

// fuseStage makes one token of all.
type fuseStage struct{}

func (fuseStage) push(p *pipe, at int, frag string, _ bool) { p.push(at+1, frag, false) }
func (fuseStage) flush(p *pipe, at int)                     { p.push(at+1, "", true) }

// replaceStage replaces a pattern within each token.
type replaceStage struct {
	token   whole
	m       matcher
	content string
}

func (t *replaceStage) push(p *pipe, at int, frag string, last bool) {
	if l, ok := t.m.(literal); ok && utf8.RuneCountInString(string(l)) == 1 { // fragments are whole characters
		p.push(at+1, replaceAll(frag, t.m, t.content), last)
		return
	}
	if s, ok := t.token.add(frag, last); ok {
		p.push(at+1, replaceAll(s, t.m, t.content), true)
	}
}
func (t *replaceStage) flush(*pipe, int) {}

// stripStage takes a character off the ends of each token: up to start times in front, up to stop times behind.
type stripStage struct {
	content     rune
	start, stop int

	cut  int  // taken in front of the current token
	past bool // something else than content came, or cut is start
	held int  // contents that may have to be taken off the end
}

func (t *stripStage) push(p *pipe, at int, frag string, last bool) {
	for !t.past && frag != "" {
		r, n := utf8.DecodeRuneInString(frag)
		if t.cut == t.start || r != t.content {
			t.past = true
			break
		}
		t.cut++
		frag = frag[n:]
	}
	one := string(t.content)
	end, tail := len(frag), 0
	for tail < t.stop && strings.HasSuffix(frag[:end], one) {
		end -= len(one)
		tail++
	}
	if end > 0 { // what was held is not at the end
		frag = strings.Repeat(one, t.held) + frag[:end]
		t.held = tail
	} else {
		over := max(t.held+tail-t.stop, 0)
		frag = strings.Repeat(one, over)
		t.held += tail - over
	}
	if last {
		t.cut, t.past, t.held = 0, false, 0
	}
	p.push(at+1, frag, last)
}
func (t *stripStage) flush(*pipe, int) {}

// metaspaceStage makes spaces of the replacement, and nothing of it in the first token if one was put in front.
type metaspaceStage struct {
	replacement string
	drop        bool
	later       bool // the first token is over
}

func (t *metaspaceStage) push(p *pipe, at int, frag string, last bool) {
	to := " "
	if t.drop && !t.later {
		to = ""
	}
	t.later = t.later || last
	p.push(at+1, strings.ReplaceAll(frag, t.replacement, to), last)
}
func (t *metaspaceStage) flush(*pipe, int) {}
