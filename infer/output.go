package infer

import (
	"slices"

	"bhive/infer/tokenizer"
)

// output turns a choice's tokens into text that may be shown: whole characters, cut before a stop string, and held back as long as
// it may be the beginning of one.
type output struct {
	stream  *tokenizer.Stream
	stops   []stopString
	include bool // the stop string stays

	read   []int    // by stop string: how much of it the text ends with
	held   string   // text that is not shown yet
	tokens []placed // tokens that are not shown yet
}

// placed is a token and where its text begins in held.
type placed struct {
	TokenInfo
	at int
}

// shown is what an output lets go.
type shown struct {
	text   string
	tokens []TokenInfo
	stop   string // the stop string that was found; nothing may be added afterwards
}

// add takes a token. With check off, stop strings are not looked for.
func (o *output) add(t TokenInfo, check bool) shown {
	piece := o.stream.Add(t.ID)
	o.tokens = append(o.tokens, placed{t, len(o.held)})
	return o.take(piece, check, false)
}

// end lets everything go.
func (o *output) end(check bool) shown { return o.take(o.stream.Flush(), check, true) }

func (o *output) take(piece string, check, all bool) shown {
	at := len(o.held)
	o.held += piece
	cut, stop := len(o.held), ""
	if check {
		if begin, s := o.look(piece, at); s != "" {
			stop, cut, all = s, begin, true
			if o.include {
				cut += len(s)
			}
		} else if !all && len(o.stops) > 0 {
			cut -= slices.Max(o.read)
		}
	}
	out := shown{text: o.held[:cut], stop: stop}
	n := 0
	for n < len(o.tokens) && (o.tokens[n].at < cut || stop == "" && cut == len(o.held)) {
		out.tokens = append(out.tokens, o.tokens[n].TokenInfo)
		n++
	}
	o.held = o.held[cut:]
	o.tokens = append(o.tokens[:0], o.tokens[n:]...)
	for i := range o.tokens {
		o.tokens[i].at -= cut
	}
	if all {
		o.held, o.tokens = "", nil
	}
	return out
}

// stopString is a stop string as it is looked for: byte by byte, in time that does not depend on its length (Knuth, Morris and Pratt, 1977).
type stopString struct {
	text string
	// back[i] is the length of the longest beginning of text that its first i+1 bytes end with, themselves left out.
	back []int16
}

func newStopString(text string) stopString {
	s := stopString{text, make([]int16, len(text))}
	n := 0
	for i := 1; i < len(text); i++ {
		n = s.next(n, text[i])
		s.back[i] = int16(n)
	}
	return s
}

// next is how much of the stop string a text ends with behind a byte, where before it was n, less than all.
func (s stopString) next(n int, b byte) int {
	for n > 0 && s.text[n] != b {
		n = int(s.back[n-1])
	}
	if s.text[n] == b {
		n++
	}
	return n
}

// look follows the stop strings through a piece that begins at at in held. Where some come to their end it gives the one that began first.
func (o *output) look(piece string, at int) (begin int, stop string) {
	if o.read == nil {
		o.read = make([]int, len(o.stops))
	}
	for i, s := range o.stops {
		n := o.read[i]
		for j := range len(piece) {
			if n = s.next(n, piece[j]); n == len(s.text) {
				if from := at + j + 1 - n; stop == "" || from < begin {
					begin, stop = from, s.text
				}
				break
			}
		}
		o.read[i] = n
	}
	return begin, stop
}
