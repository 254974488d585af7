package grammar

import (
	"encoding/json"
	"fmt"
	"math/big"
	"strings"
	"testing"
)

// TestCompilingIsBounded: schemas whose cost grows with the square of their size, or faster, are refused before much was done.
func TestCompilingIsBounded(t *testing.T) {
	const tooLarge = "is too large or combines too much"
	repeat := func(n int, part func(i int) string) string {
		var parts []string
		for i := range n {
			parts = append(parts, part(i))
		}
		return strings.Join(parts, ",")
	}
	large := new(big.Int).Exp(big.NewInt(10), big.NewInt(390), nil)
	for name, c := range map[string]struct{ schema, want string }{
		"a long key above many values": {`{"properties":{"` + strings.Repeat("k", 20_000) + `":{"anyOf":[` +
			repeat(1000, func(int) string { return "true" }) + `]}}}`, "the keys are too long"},
		"values that are long alike": {`{"maxItems":0,"enum":[` + repeat(500, func(i int) string {
			return "[" + strings.Repeat(`"a",`, 300) + fmt.Sprint(i) + "]"
		}) + `]}`, tooLarge},
		"multiples of many long numbers": {`{"allOf":[` + repeat(220, func(i int) string {
			return fmt.Sprintf(`{"multipleOf":%s}`, large.Add(large, big.NewInt(int64(2*i+1))))
		}) + `]}`, tooLarge},
		"a chain from its end on": {`{"prefixItems":[` +
			repeat(1200, func(i int) string { return fmt.Sprintf(`{"$ref":"#/$defs/d%d"}`, 1199-i) }) + `],"minItems":1200,"$defs":{` +
			repeat(1200, func(i int) string {
				return fmt.Sprintf(`"d%d":{"type":"array","minItems":1,"maxItems":1,"items":{"$ref":"#/$defs/d%d"}}`, i, i+1)
			}) + `,"d1200":{"type":"null"}}}`, tooLarge},
	} {
		if _, err := Compile(json.RawMessage(c.schema)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestReferencesReadOnce: however a $ref spells its way, what it means is one schema.
func TestReferencesReadOnce(t *testing.T) {
	v, err := parseValue([]byte(`{"prefixItems":[{"type":"null"},{"$ref":"#/prefixItems/0"},{"$ref":"#/prefixItems/00"},
		{"$ref":"#/prefixItems/+0"},{"$ref":"#/prefixItems/%30"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	d, err := readDocument(&v)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range d.root.prefix[1:] {
		if to, err := d.resolve(s); err != nil || to != d.root.prefix[0] {
			t.Errorf("%s: %p, %v", s.ref, to, err)
		}
	}
}
