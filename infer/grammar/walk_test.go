package grammar

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"pgregory.net/rapid"
)

// toyTokens are every byte and pieces as a tokenizer has them, some across the ends of strings and numbers.
func toyTokens() [][]byte {
	var out [][]byte
	out = append(out, []byte("<end>"))
	for c := range 256 {
		out = append(out, []byte{byte(c)})
	}
	for _, s := range []string{`{"`, `":`, `": `, `": "`, `",`, `","`, `", "`, `"}`, `"}]`, `"]`, `[]`, `{}`, `[{`, `}]`, `},{`, `[["`, `12`, `-1`, `0.`, `.5`, `e1`, `00`, `1,`, `2]`,
		`3}`, `true`, `false`, `null`, `tr`, `ue`, `nul`, `a`, `ab`, `abc"`, `na`, `name`, `name"`, `name":`, `x`, `xy`, `foo`, `bar"`, `é`, "\xc3", "\xa9\"", `😀`, "\xf0\x9f", `\u`, `\"`, `\n`,
		`\ud83d`, `\ude00`, "\n", "\n  ", "    ", ` `, ` "`, `"a"`, `{"a":`, `{"a":{"a":`, `2024-`, `-0`, `@`, `.com`, `A`, `b`, `aaaa`, `"", "`, `1.`, `1.5`, `10`, `100`} {
		out = append(out, []byte(s))
	}
	return out
}

func toyVocabulary() (*Vocabulary, [][]byte) {
	tokens := toyTokens()
	return NewVocabulary(len(tokens), func(id int) []byte {
		if id == 0 {
			return nil
		}
		return tokens[id]
	}, []int{0}), tokens
}

// randomSchema draws a schema of the claimed keywords; some have no value.
func randomSchema(t *rapid.T, depth int) map[string]any {
	kinds := []string{"string", "integer", "number", "boolean", "null", "enum", "pattern", "format", "range", "text", "any"}
	if depth > 0 {
		kinds = append(kinds, "object", "object", "object", "array", "array", "tuple", "anyOf", "allOf", "map", "recursive", "oneOf")
	}
	small := func(name string) int { return rapid.IntRange(0, 4).Draw(t, name) }
	switch k := rapid.SampledFrom(kinds).Draw(t, "kind"); k {
	case "string", "boolean", "null", "integer", "number":
		return map[string]any{"type": k}
	case "text":
		n := small("least")
		return map[string]any{"type": "string", "minLength": n, "maxLength": n + small("more")}
	case "enum":
		return map[string]any{"enum": rapid.SliceOfN(rapid.SampledFrom([]any{"a", "foo", 1, -2.5, true, nil, []any{1, "x"}, map[string]any{"a": []any{}}, "é\"\n"}), 1, 4).Draw(t, "values")}
	case "pattern":
		return map[string]any{"type": "string", "pattern": rapid.SampledFrom([]string{`^[a-z]{2,3}$`, `b`, `^a*$`, `^(foo|bar)+$`, `^\d{3}-\d{2}$`, `^[^"\\]+$`, `^\S+@\S+$`, `\bab\b`, `^é?.$`}).Draw(t, "pattern")}
	case "format":
		return map[string]any{"type": "string", "format": rapid.SampledFrom([]string{"date", "time", "date-time", "uuid", "email", "ipv4", "ipv6", "duration", "hostname", "uri"}).Draw(t, "format")}
	case "range":
		out := map[string]any{"type": rapid.SampledFrom([]string{"integer", "number"}).Draw(t, "type")}
		bound := func() any {
			return json.Number(fmt.Sprintf("%d.%d", rapid.IntRange(-120, 120).Draw(t, "bound"), rapid.IntRange(0, 99).Draw(t, "fraction")))
		}
		if rapid.Bool().Draw(t, "low") {
			out[rapid.SampledFrom([]string{"minimum", "exclusiveMinimum"}).Draw(t, "kind")] = bound()
		}
		if rapid.Bool().Draw(t, "high") {
			out[rapid.SampledFrom([]string{"maximum", "exclusiveMaximum"}).Draw(t, "kind")] = bound()
		}
		if rapid.Bool().Draw(t, "multiple") {
			out["multipleOf"] = rapid.SampledFrom([]any{2, 3, 10, json.Number("0.5"), json.Number("0.01"), json.Number("1.5"), 7}).Draw(t, "of")
		}
		return out
	case "object":
		properties := map[string]any{}
		var required []string
		for _, name := range rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"a", "ab", "name", "x", "foo", "é\"", ""}), 0, 4, rapid.ID).Draw(t, "names") {
			properties[name] = randomSchema(t, depth-1)
			if rapid.Bool().Draw(t, "required") {
				required = append(required, name)
			}
		}
		out := map[string]any{"type": "object", "properties": properties}
		if required != nil {
			out["required"] = required
		}
		switch small("additional") {
		case 0, 1:
			out["additionalProperties"] = false
			if rapid.Bool().Draw(t, "count") {
				out["minProperties"] = small("least")
			}
		case 2:
			out["additionalProperties"] = randomSchema(t, depth-1)
		case 3:
			out["patternProperties"] = map[string]any{"^x": randomSchema(t, depth-1), "b$": randomSchema(t, 0)}
		}
		if rapid.Bool().Draw(t, "most") {
			out["maxProperties"] = small("most")
		}
		return out
	case "map":
		out := map[string]any{"type": "object", "additionalProperties": randomSchema(t, depth-1)}
		if rapid.Bool().Draw(t, "names") {
			out["propertyNames"] = map[string]any{"pattern": "^[a-c]+$", "maxLength": 3}
		}
		return out
	case "array":
		out := map[string]any{"type": "array", "items": randomSchema(t, depth-1)}
		if rapid.Bool().Draw(t, "least") {
			out["minItems"] = small("items")
		}
		if rapid.Bool().Draw(t, "most") {
			out["maxItems"] = small("items")
		}
		return out
	case "tuple":
		out := map[string]any{"type": "array", "prefixItems": []any{randomSchema(t, depth-1), randomSchema(t, depth-1)}, "items": false}
		if rapid.Bool().Draw(t, "open") {
			out["items"] = randomSchema(t, depth-1)
			out["minItems"] = small("items")
		}
		return out
	case "anyOf", "oneOf":
		return map[string]any{k: []any{randomSchema(t, depth-1), randomSchema(t, depth-1)}}
	case "allOf":
		return map[string]any{"allOf": []any{randomSchema(t, depth-1), randomSchema(t, depth-1)}}
	case "recursive":
		return map[string]any{"type": "object", "properties": map[string]any{"v": randomSchema(t, depth-1), "next": map[string]any{"$ref": "#"}}, "required": []any{"v"}, "additionalProperties": false}
	}
	return map[string]any{}
}

// walk writes a text under the mask by draws, the more eager to end the longer it gets; ok tells that it has ended.
func walk(t *rapid.T, b *Bound, tokens [][]byte, most int) (text []byte, ok bool) {
	m := b.New()
	oracle := newStacks(b.g)
	at := oracle.begin()
	dst := make([]int32, (len(tokens)+31)/32)
	for n := range most {
		clear(dst)
		m.Mask(dst)
		var allowed, closing []int
		for id := range tokens {
			if dst[id/32]>>(id%32)&1 == 0 {
				continue
			}
			allowed = append(allowed, id)
			if id == 0 || strings.ContainsAny(string(tokens[id][:1]), `"]}`) {
				closing = append(closing, id)
			}
		}
		if n < 60 { // each token as it comes out byte by byte
			for id, token := range tokens {
				want := id == 0 && at.out && len(at.frames) > 0
				if id > 0 {
					c := at
					for _, x := range token {
						if c != nil {
							c = oracle.step(c, x)
						}
					}
					want = c != nil
				}
				if got := dst[id/32]>>(id%32)&1 == 1; got != want {
					t.Fatalf("behind %q token %q is allowed: %v, want %v", text, token, got, want)
				}
			}
		}
		if len(allowed) == 0 {
			if !m.Complete() {
				t.Fatalf("stuck behind %q", text)
			}
			return text, true
		}
		from := allowed
		if len(closing) > 0 && (n > most/2 || rapid.IntRange(0, 9).Draw(t, "close") < 3) {
			from = closing
		}
		id := rapid.SampledFrom(from).Draw(t, "token")
		if n > most/2 && id != 0 && from[0] == 0 {
			id = 0
		}
		m.Accept(id)
		if id == 0 {
			if !m.Complete() {
				t.Fatalf("ended behind %q", text)
			}
			return text, true
		}
		text = append(text, tokens[id]...)
		for _, x := range tokens[id] {
			at = oracle.step(at, x)
		}
	}
	return text, false
}

// validator compiles a schema with another implementation.
func validator(schema []byte) (*jsonschema.Schema, error) {
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(schema))
	if err != nil {
		return nil, err
	}
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	if err := c.AddResource("s.json", doc); err != nil {
		return nil, err
	}
	return c.Compile("s.json")
}

// TestWalks: whatever is drawn under the masks of whatever schema, the text satisfies it.
func TestWalks(t *testing.T) {
	v, tokens := toyVocabulary()
	compiled, ended := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		schema, err := json.Marshal(randomSchema(t, 3))
		if err != nil {
			t.Fatal(err)
		}
		g, err := Compile(schema)
		if err != nil {
			return // no value, or a oneOf that overlaps
		}
		compiled++
		want, err := validator(schema)
		if err != nil {
			t.Fatalf("%s: %v", schema, err)
		}
		text, ok := walk(t, v.Bind(g), tokens, 300)
		if !ok {
			return
		}
		ended++
		doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
		if err != nil {
			t.Fatalf("%s: %q: %v", schema, text, err)
		}
		if err := want.Validate(doc); err != nil {
			t.Fatalf("%s: %s: %v", schema, text, err)
		}
	})
	if ended*2 < compiled {
		t.Errorf("%d of %d walks ended", ended, compiled)
	}
	t.Logf("%d schemas, %d walks ended", compiled, ended)
}
