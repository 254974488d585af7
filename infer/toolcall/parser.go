package toolcall

import (
	"slices"
	"strings"
)

// Piece is what a part of a text adds: to the content, or to a call.
type Piece struct {
	Content   string
	Call      int    // which call, from 0, where Name or Arguments is not empty
	Name      string // in a call's first piece alone
	Arguments string // JSON text to be appended
}

// Parser reads one text. Make it with NewParser.
type Parser struct {
	format Format
	names  []string
	single bool

	state state
	buf   string // not read yet
	raw   string // read since the last opening or whole call: content, if what follows is no call
	blank string // white space of the content, held back until content follows
	begun bool   // content was given that is not white space
	list  bool   // within [ ]
	some  bool   // a call has been read since the opening
	call  object
	shown int // bytes of call's arguments that were given
	open  bool
	calls int
	out   []Piece
}

type state int

const (
	inText   state = iota
	between        // behind an opening, before, between or behind calls
	inCall         // in an object
	inName         // of Mistral's short form
	finished       // the one call that is allowed is whole: the rest does not count
)

// NewParser makes a parser. Calls of other tools than those named are content. With single, the first call ends the text.
func NewParser(f Format, names []string, single bool) *Parser {
	return &Parser{format: f, names: names, single: single}
}

// Calls is how many calls have begun.
func (p *Parser) Calls() int { return p.calls }

// Whole reports whether the call that began last is complete, and nothing has followed it but what closes it.
func (p *Parser) Whole() bool {
	return p.calls > 0 && (p.state == finished || p.state == between && p.some || p.state == inText && p.raw == "" && p.buf == "" && p.some)
}

// Add takes the next part of the text and returns what is sure by then.
func (p *Parser) Add(text string) []Piece {
	p.buf += text
	for p.step() {
	}
	return p.take()
}

// End returns what was held back, when the text has ended.
func (p *Parser) End() []Piece {
	switch {
	case p.state == inText:
		p.content(p.buf)
	case p.state == finished || p.state == inCall && p.open || p.state == between && p.some:
	default: // an opening without a call
		p.content(p.raw + p.buf)
	}
	p.buf, p.raw = "", ""
	if p.calls == 0 && p.blank != "" {
		p.out = append(p.out, Piece{Content: p.blank})
	}
	p.blank = ""
	return p.take()
}

func (p *Parser) take() []Piece {
	out := p.out
	p.out = nil
	return out
}

// content gives text to the content; the white space at its end waits.
func (p *Parser) content(text string) {
	body := strings.TrimRight(text, " \t\r\n")
	if body == "" {
		p.blank += text
		return
	}
	p.out = append(p.out, Piece{Content: p.blank + body})
	p.blank, p.begun = text[len(body):], true
}

// step reads some of buf; false where more must come first.
func (p *Parser) step() bool {
	if p.buf == "" {
		return false
	}
	switch p.state {
	case inText:
		return p.text()
	case between:
		return p.gap()
	case inCall:
		return p.object()
	case inName:
		return p.shortName()
	}
	p.buf = ""
	return false
}

func (p *Parser) opening() string {
	switch p.format {
	case Hermes:
		return hermesOpen
	case Llama3:
		return llamaOpen
	case Mistral:
		return mistralOpen
	}
	return ""
}

// text looks for the opening of calls.
func (p *Parser) text() bool {
	opening := p.opening()
	if opening == "" {
		p.content(p.buf)
		p.buf = ""
		return false
	}
	if p.format == Llama3 && !p.begun && p.calls == 0 { // without an opening too, at the beginning
		body := strings.TrimLeft(p.buf, " \t\r\n")
		if body == "" {
			return false
		}
		if body[0] == '{' {
			p.enter(p.buf[:len(p.buf)-len(body)])
			return true
		}
	}
	if at := strings.Index(p.buf, opening); at >= 0 {
		p.content(p.buf[:at])
		p.buf = p.buf[at:]
		p.enter(opening)
		return true
	}
	sure := len(p.buf) - partial(p.buf, opening)
	p.content(p.buf[:sure])
	p.buf = p.buf[sure:]
	return false
}

// partial is the length of the longest end of text that mark begins with.
func partial(text, mark string) int {
	for n := min(len(mark)-1, len(text)); n > 0; n-- {
		if strings.HasSuffix(text, mark[:n]) {
			return n
		}
	}
	return 0
}

// enter reads an opening.
func (p *Parser) enter(opening string) {
	p.raw, p.buf = opening, p.buf[len(opening):]
	p.state, p.list, p.some = between, false, false
}

// leave goes back to the text; what was read since the last call is content if it holds more than what closes calls.
func (p *Parser) leave() {
	p.buf = p.raw + p.buf
	p.state, p.raw = inText, ""
}

// refuse makes content of what was taken for a call's beginning.
func (p *Parser) refuse() {
	p.content(p.raw)
	p.state, p.raw = inText, ""
}

// gap reads what stands around calls.
func (p *Parser) gap() bool {
	c := p.buf[0]
	switch {
	case space(c), c == '[' && !p.list && !p.some && p.format != Llama3, c == ']' && p.list, (c == ',' || c == ';') && p.some:
		p.list = p.list && c != ']' || c == '['
		p.raw, p.buf = p.raw+p.buf[:1], p.buf[1:]
		return true
	case c == '{':
		p.call, p.shown, p.open, p.state = object{}, 0, false, inCall
		return true
	case p.format == Hermes && c == '<':
		if strings.HasPrefix(p.buf, hermesClose) && p.some {
			p.buf = p.buf[len(hermesClose):]
			p.state, p.raw = inText, ""
			return true
		}
		if p.some && len(p.buf) < len(hermesClose) && strings.HasPrefix(hermesClose, p.buf) {
			return false
		}
	case p.format == Mistral && c == '[' && p.some && !p.list: // the next of the short form
		if strings.HasPrefix(p.buf, mistralOpen) {
			p.state, p.raw = inText, ""
			return true
		}
		if strings.HasPrefix(mistralOpen, p.buf) {
			return false
		}
	case p.format == Mistral && !p.list && !p.some && nameByte(c):
		p.state = inName
		return true
	}
	if p.some {
		p.leave()
	} else {
		p.refuse()
	}
	return true
}

// object reads a call, to the end of what is there or of the call; before that to where it is sure to be one.
func (p *Parser) object() bool {
	for i := range len(p.buf) {
		p.call.add(p.buf[i])
		switch {
		case p.call.at == broken:
			p.advance(i)
			if p.open { // what is known of it stays
				p.give()
				p.state, p.raw = inText, ""
			} else {
				p.refuse()
			}
			return true
		case p.call.at == complete && !p.call.named: // an object that is no call
			p.advance(i + 1)
			p.refuse()
			return true
		case !p.open && p.call.named && (p.call.given || p.call.at == complete) && !slices.Contains(p.names, p.call.name):
			p.advance(i + 1)
			p.refuse()
			return true
		case !p.open && p.call.named && (p.call.given || p.call.at == complete):
			p.out = append(p.out, Piece{Call: p.calls, Name: p.call.name})
			p.open = true
			p.calls++
		}
		if p.call.at == complete {
			p.advance(i + 1)
			p.give()
			p.state, p.some, p.open, p.raw = between, true, false, ""
			if p.single {
				p.state = finished
			}
			return true
		}
	}
	p.advance(len(p.buf))
	if p.open {
		p.give()
	}
	return false
}

// advance reads n bytes; those of a call that is sure to be one are never content again.
func (p *Parser) advance(n int) {
	if !p.open {
		p.raw += p.buf[:n]
	}
	p.buf = p.buf[n:]
}

// give gives what is new of the arguments.
func (p *Parser) give() {
	if args := p.call.args.String(); len(args) > p.shown {
		p.out = append(p.out, Piece{Call: p.calls - 1, Arguments: args[p.shown:]})
		p.shown = len(args)
	}
}

func nameByte(c byte) bool {
	return c == '_' || c == '-' || c == '.' || '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
}

// shortName reads name[CALL_ID]id[ARGS] before {…}.
func (p *Parser) shortName() bool {
	rest := strings.TrimLeftFunc(p.buf, func(r rune) bool { return r < 128 && nameByte(byte(r)) })
	name := p.buf[:len(p.buf)-len(rest)]
	if strings.HasPrefix(rest, mistralID) {
		id := rest[len(mistralID):]
		rest = strings.TrimLeftFunc(id, func(r rune) bool { return r < 128 && nameByte(byte(r)) })
	}
	rest = strings.TrimPrefix(rest, mistralArguments)
	rest = strings.TrimLeft(rest, " \t\r\n")
	switch {
	case rest == "" || rest[0] == '[' && (strings.HasPrefix(mistralID, rest) || strings.HasPrefix(mistralArguments, rest)):
		return false
	case rest[0] == '{':
		p.advance(len(p.buf) - len(rest))
		p.call, p.shown, p.open, p.state = object{}, 0, false, inCall
		for _, c := range []byte(`{"name":"` + name + `","arguments":`) {
			p.call.add(c)
		}
		p.call.bare = true
		return true
	}
	p.advance(len(p.buf) - len(rest))
	p.refuse()
	return true
}
