package grammar

import (
	"bytes"
	"encoding/json"
	"testing"
)

func TestCompileAccepts(t *testing.T) {
	for _, c := range []struct {
		schema string
		yes    []string
		no     []string
	}{
		{`{"type":"object","properties":{"a":{"type":"string"},"b":{"type":"integer"}},"required":["a","b"],"additionalProperties":false}`,
			[]string{`{"a":"x","b":1}`, `{"a": "é\n\ud83d\ude00 \u00e9", "b": -12}`, "{\n  \"a\": \"\",\n  \"b\": 0\n}"},
			[]string{`{"a":"x"}`, `{"b":1,"a":"x"}`, `{"a":"x","b":1,"c":2}`, `{"a":"x","b":1.5}`, `{"a":"x","b":01}`, `{"a":"\ud800","b":1}`, `{"a":"x","b":1}}`,
				"{\"a\":\"\xff\",\"b\":1}", "{\"a\":\"\n\",\"b\":1}", `{  "a":"x","b":1}`, ``}},
		{`{"type":"object","properties":{"a":{"type":"string"},"b":{"type":"integer"}}}`,
			[]string{`{}`, `{"a":"x"}`, `{"b":1}`, `{"b":1,"c":[{}]}`, `{"c":null,"d":1e5}`, `{"ab":1}`, `{"":1}`},
			[]string{`{"a":1}`, `{"b":"x"}`, `{"c":1,"a":2}`, `{,}`, `{"c":1,}`}},
		{`{"type":"array","items":{"type":"boolean"},"minItems":2,"maxItems":3}`,
			[]string{`[true,false]`, `[true, false, true]`}, []string{`[]`, `[true]`, `[true,true,true,true]`, `[1,2]`}},
		{`{"type":"array","prefixItems":[{"type":"string"},{"type":"null"}],"items":{"type":"integer"},"minItems":1,"maxItems":4}`,
			[]string{`["a"]`, `["a",null]`, `["a",null,1,2]`}, []string{`[]`, `["a",1]`, `["a",null,1,2,3]`, `["a",null,null]`}},
		{`{"type":"string","minLength":2,"maxLength":3}`, []string{`"ab"`, `"äöü"`, `"\u00e9x"`, `"😀😀"`}, []string{`"a"`, `"abcd"`, `""`}},
		{`{"type":"string","pattern":"^a+b?$"}`, []string{`"a"`, `"aab"`}, []string{`"b"`, `""`, `"abb"`}},
		{`{"type":"string","pattern":"b"}`, []string{`"b"`, `"abc"`, `"\"b"`, `"😀b"`}, []string{`"a"`, `""`}},
		{`{"type":"string","pattern":"\\bfoo\\b"}`, []string{`"foo"`, `"a foo b"`}, []string{`"afoo"`, `"foob"`}},
		{`{"type":"string","format":"date"}`, []string{`"2024-02-29"`, `"2023-12-31"`}, []string{`"2023-02-29"`, `"2023-13-01"`, `"2023-04-31"`, `"1900-02-29"`}},
		{`{"type":"integer","minimum":5,"maximum":120}`, []string{`5`, `10`, `99`, `120`}, []string{`4`, `121`, `-5`, `05`, `1000`}},
		{`{"type":"integer","minimum":-12,"maximum":7}`, []string{`-12`, `-9`, `0`, `7`, `-1`}, []string{`-13`, `8`, `-0`, `10`, `-100`}},
		{`{"type":"number","exclusiveMinimum":0,"maximum":1.5}`, []string{`0.1`, `1`, `1.5`, `1.50`, `0.0001`, `1.49`}, []string{`0`, `0.0`, `-1`, `1.51`, `2`, `10`}},
		{`{"type":"number","multipleOf":0.01}`, []string{`0.01`, `5`, `-1.25`, `3.5`}, []string{`0.001`, `1.255`}},
		{`{"type":"integer","multipleOf":3}`, []string{`0`, `3`, `-9`, `111`}, []string{`1`, `10`}},
		{`{"enum":["a",1,null,{"x":[1,"b"]}]}`, []string{`"a"`, `1`, `null`, `{"x":[1,"b"]}`}, []string{`"b"`, `2`}},
		{`{"type":"string","enum":["a",1]}`, []string{`"a"`}, []string{`1`}},
		{`{"$defs":{"t":{"type":"object","properties":{"v":{"type":"integer"},"c":{"type":"array","items":{"$ref":"#/$defs/t"}}},"required":["v","c"],"additionalProperties":false}},"$ref":"#/$defs/t"}`,
			[]string{`{"v":1,"c":[]}`, `{"v":1,"c":[{"v":2,"c":[{"v":3,"c":[]}]},{"v":4,"c":[]}]}`}, []string{`{"v":1}`, `{"v":1,"c":[1]}`}},
		{`{"anyOf":[{"type":"string"},{"type":"array","items":{"$ref":"#"}}]}`, []string{`"a"`, `[]`, `["a",[["b"]]]`}, []string{`1`, `[1]`}},
		{`{"allOf":[{"properties":{"a":{"type":"integer"}},"required":["a"]},{"properties":{"a":{"minimum":3}},"type":"object"}]}`,
			[]string{`{"a":3}`, `{"a":3,"b":1}`}, []string{`{"a":2}`, `{}`, `3`}},
		{`{"oneOf":[{"type":"integer"},{"type":"string"}]}`, []string{`1`, `"a"`}, []string{`null`, `1.5`}},
		{`{"type":"object","patternProperties":{"^x":{"type":"integer"}},"additionalProperties":{"type":"string"}}`,
			[]string{`{"x":1,"y":"a","xx":2}`, `{}`}, []string{`{"x":"a"}`, `{"y":1}`}},
		{`{"type":"object","propertyNames":{"maxLength":2},"maxProperties":2}`, []string{`{"ab":1}`, `{"a":1,"b":2}`}, []string{`{"abc":1}`, `{"a":1,"b":2,"c":3}`}},
		{`true`, []string{`1`, `{"a":[{"b":"c"}]}`, `-0.5e-3`}, []string{`tru`, `[1`}},
	} {
		g, err := Compile(json.RawMessage(c.schema))
		if err != nil {
			t.Errorf("%s: %v", c.schema, err)
			continue
		}
		for _, s := range c.yes {
			if !g.Accepts([]byte(s)) {
				t.Errorf("%s refuses %s", c.schema, s)
			}
		}
		for _, s := range c.no {
			if g.Accepts([]byte(s)) {
				t.Errorf("%s accepts %s", c.schema, s)
			}
		}
	}
}

// TestAllBytes: an automaton may tell all 256 bytes apart.
func TestAllBytes(t *testing.T) {
	var all []byte
	for b := range 256 {
		all = append(all, byte(b))
	}
	g, err := Choice([]string{string(all)})
	if err != nil {
		t.Fatal(err)
	}
	if !g.Accepts(all) || g.Accepts(bytes.ToUpper(all)) {
		t.Error("another text is accepted")
	}
}
