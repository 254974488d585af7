package infer

import (
	"strings"

	"bhive/infer/tokenizer"
)

// output turns a choice's tokens into text that may be shown: whole characters, cut before a stop string, and held back as long as
// it may be the beginning of one.
type output struct {
	stream  *tokenizer.Stream
	stops   []string
	include bool // the stop string stays

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
	o.held += piece
	cut, stop := len(o.held), ""
	if check {
		if at, s := firstStop(o.held, o.stops); s != "" {
			stop, cut, all = s, at, true
			if o.include {
				cut += len(s)
			}
		} else if !all {
			cut -= stopPrefix(o.held, o.stops)
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

// firstStop finds the stop string that begins first.
func firstStop(text string, stops []string) (at int, stop string) {
	for _, s := range stops {
		if i := strings.Index(text, s); i >= 0 && (stop == "" || i < at) {
			at, stop = i, s
		}
	}
	return at, stop
}

// stopPrefix is the length of the longest end of text that a stop string begins with.
func stopPrefix(text string, stops []string) int {
	longest := 0
	for _, s := range stops {
		for n := min(len(s)-1, len(text)); n > longest; n-- {
			if strings.HasSuffix(text, s[:n]) {
				longest = n
			}
		}
	}
	return longest
}
