package grammar

import (
	"encoding/json"
	"errors"
	"testing"
	"unicode/utf8"
)

// FuzzCompile: any bytes are compiled or refused with an *Error. What is compiled has a text, found by going on with any byte that may come,
// and that text is JSON.
func FuzzCompile(f *testing.F) {
	for _, s := range []string{`{}`, `true`, `false`, benchSchema, `{"type":["string","null"],"maxLength":3}`, `{"enum":[1,{"a":[]}]}`, `{"$ref":"#"}`, `{"allOf":[{"$ref":"#/$defs/a"}],"$defs":{"a":{}}}`,
		`{"type":"array","prefixItems":[{}],"items":false,"minItems":1}`, `{"type":"number","minimum":1e300}`, `{"multipleOf":0.5,"maximum":-1}`, `{"pattern":"^\\p{L}+$"}`, `{"pattern":"(a|b)*c{2,9}\\b"}`,
		`{"oneOf":[{"type":"object","required":["k"],"properties":{"k":{"const":1}}},{"type":"object","required":["k"],"properties":{"k":{"const":2}}}]}`,
		`{"type":"object","patternProperties":{"^a":{"type":"null"}},"propertyNames":{"maxLength":2},"minProperties":1}`, `{"format":"ipv6"}`, `{"anyOf":[{"items":{"$ref":"#"}},{"type":"null"}]}`, `[`, `{"type":7}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, schema []byte) {
		g, err := Compile(json.RawMessage(schema))
		if err != nil {
			var bad *Error
			if !errors.As(err, &bad) || !errors.Is(err, ErrSchema) {
				t.Fatal(err)
			}
			return
		}
		s := newStacks(g)
		at := s.begin()
		var text []byte
		for n := 0; at != nil && n < 2000 && !(at.out && n > 0); n++ {
			var next *config
			for i := range 256 {
				b := byte("\"]}0123456789,:{[tfn-"[i%21])
				if i >= 21 {
					b = byte((i*7 + n) % 256)
				}
				if next = s.step(at, b); next != nil {
					text = append(text, b)
					break
				}
			}
			if next == nil {
				for b := range 256 {
					if next = s.step(at, byte(b)); next != nil {
						text = append(text, byte(b))
						break
					}
				}
			}
			if next == nil {
				t.Fatalf("%s: stuck behind %q", schema, text)
			}
			at = next
		}
		if at.out && !json.Valid(text) {
			t.Fatalf("%s admits %q", schema, text)
		}
	})
}

// FuzzRegex: any expression is compiled or refused with an *Error.
func FuzzRegex(f *testing.F) {
	for _, s := range []string{``, `a`, `^a$`, `[^\s]+`, `(?i)straße`, `\u00e9\x41\cA`, `a{2,3}(b|c)*`, `\bx\B`, `[\d\-\]]`, `\p{Lu}.`, `(?<n>a)\k<n>`, `(?=a)`, `[]`, `[^]`, `\`, `a$b`, `(^|a)$`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, p string) {
		if len(p) > 60 || !utf8.ValidString(p) {
			return
		}
		if _, err := Regex(p); err != nil {
			var bad *Error
			if !errors.As(err, &bad) {
				t.Fatal(err)
			}
		}
	})
}
