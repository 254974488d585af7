package toolcall

import (
	"encoding/json"
	"strings"
)

// object reads {"name": "…", "arguments": {…}} byte by byte. It checks no more of JSON than it needs to find where values end.
type object struct {
	at     place
	key    string
	value  []byte // of the key or value at hand, unless it is passed on
	stack  []byte // closing brackets that are due
	quoted bool   // inside a string
	escape bool   // behind a backslash in it

	name  string // "" until it is known
	named bool
	args  strings.Builder // what is known of the arguments
	given bool            // arguments were seen
	bare  bool            // the object ends with its arguments
}

// place is where in the object the next byte stands.
type place int

const (
	beforeObject place = iota
	beforeKey
	inKey
	beforeColon
	beforeValue
	inValue
	afterValue
	complete
	broken
)

func space(c byte) bool { return c == ' ' || c == '\n' || c == '\r' || c == '\t' }

// add takes a byte. Behind complete and broken none may follow.
func (o *object) add(c byte) {
	switch o.at {
	case beforeObject:
		o.want(c, '{', beforeKey)
	case beforeKey:
		switch {
		case c == '"':
			o.at, o.value, o.quoted = inKey, []byte{c}, true
		case c == '}':
			o.at = complete
		case !space(c) && c != ',':
			o.at = broken
		}
	case inKey:
		o.value = append(o.value, c)
		if o.string(c); !o.quoted {
			if json.Unmarshal(o.value, &o.key) != nil {
				o.at = broken
				return
			}
			o.at = beforeColon
		}
	case beforeColon:
		o.want(c, ':', beforeValue)
	case beforeValue:
		if space(c) {
			return
		}
		o.at, o.value = inValue, o.value[:0]
		o.begin(c)
	case inValue:
		o.inside(c)
	case afterValue:
		switch {
		case c == ',':
			o.at = beforeKey
		case c == '}':
			o.at = complete
		case !space(c):
			o.at = broken
		}
	default:
		panic("toolcall: a byte behind an object's end")
	}
	if o.bare && o.at == afterValue {
		o.at = complete
	}
	if o.at == complete && !o.given {
		o.args.WriteString("{}")
	}
}

func (o *object) want(c, wanted byte, next place) {
	switch {
	case c == wanted:
		o.at = next
	case !space(c):
		o.at = broken
	}
}

// string follows a string's bytes.
func (o *object) string(c byte) {
	switch {
	case o.escape:
		o.escape = false
	case c == '\\':
		o.escape = true
	case c == '"':
		o.quoted = false
	}
}

// arguments reports whether the value at hand is the call's arguments.
func (o *object) arguments() bool { return o.key == "arguments" || o.key == "parameters" }

// begin takes a value's first byte.
func (o *object) begin(c byte) {
	switch c {
	case '{', '[', '"':
		o.inside(c)
	case '}', ']', ',', ':':
		o.at = broken
	default:
		o.value = append(o.value, c) // a number or a word
	}
}

// inside takes a byte of a value.
func (o *object) inside(c byte) {
	pass := o.arguments() && (len(o.stack) > 0 && o.stack[0] == '}' || len(o.stack) == 0 && len(o.value) == 0 && c == '{')
	keep := func() {
		if pass {
			o.args.WriteByte(c)
			o.given = true
		} else {
			o.value = append(o.value, c)
		}
	}
	if o.quoted {
		keep()
		if o.string(c); !o.quoted && len(o.stack) == 0 {
			o.end()
		}
		return
	}
	scalar := len(o.stack) == 0 && len(o.value) > 0
	switch {
	case scalar && (c == ',' || c == '}' || space(c)):
		if o.end(); o.at == afterValue {
			o.add(c)
		}
		return
	case scalar && (c == '{' || c == '[' || c == '"' || c == ']' || c == ':'):
		o.at = broken
		return
	case c == '"':
		o.quoted = true
	case c == '{':
		o.stack = append(o.stack, '}')
	case c == '[':
		o.stack = append(o.stack, ']')
	case c == '}' || c == ']':
		if n := len(o.stack); n == 0 || o.stack[n-1] != c {
			o.at = broken
			return
		}
		o.stack = o.stack[:len(o.stack)-1]
		keep()
		if len(o.stack) == 0 {
			o.end()
		}
		return
	}
	keep()
}

// end is told that the value at hand is whole.
func (o *object) end() {
	o.at = afterValue
	switch {
	case o.key == "name":
		if json.Unmarshal(o.value, &o.name) != nil || o.name == "" {
			o.at = broken
		}
		o.named = true
	case o.arguments() && !o.given: // not an object: a string of JSON, or none
		o.given = true
		var text string
		switch {
		case json.Unmarshal(o.value, &text) == nil && text != "":
			o.args.WriteString(text)
		case string(o.value) == "null" || string(o.value) == `""`:
			o.args.WriteString("{}")
		default:
			o.args.Write(o.value)
		}
	}
}
