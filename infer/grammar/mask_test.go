package grammar

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

// TestManyCallers: where arrays of several kinds may stand at each level, a token that ends many levels takes no more work with each of them, and the
// mask is the one found byte by byte.
func TestManyCallers(t *testing.T) {
	tokens := toyTokens()
	for n := 2; n <= 12; n++ {
		tokens = append(tokens, []byte(strings.Repeat("]", n)), []byte(strings.Repeat("]", n)+","))
	}
	v := NewVocabulary(len(tokens), func(id int) []byte {
		if id == 0 {
			return nil
		}
		return tokens[id]
	}, []int{0})
	kinds := []string{`{"type":"null"}`}
	for i := range 5 {
		kinds = append(kinds, fmt.Sprintf(`{"type":"array","items":{"$ref":"#"},"maxItems":%d}`, 5+i))
	}
	g, err := Compile(json.RawMessage(`{"anyOf":[` + strings.Join(kinds, ",") + `]}`))
	if err != nil {
		t.Fatal(err)
	}
	b := v.Bind(g)
	m, oracle := b.New(), newStacks(g)
	at := oracle.begin()
	for i, c := range "[[[[[[[[[[[null" {
		dst := make([]int32, v.words)
		before := b.visits
		m.Mask(dst)
		if n := b.visits - before; n > 500_000 {
			t.Fatalf("the mask behind %d bytes took %d nodes", i, n)
		}
		for id := 1; id < len(tokens); id++ {
			to := at
			for _, x := range tokens[id] {
				if to != nil {
					to = oracle.step(to, x)
				}
			}
			if got := dst[id/32]>>(id%32)&1 == 1; got != (to != nil) {
				t.Fatalf("behind %d bytes %q is allowed: %v", i, tokens[id], got)
			}
		}
		m.Accept(1 + int(c))
		at = oracle.step(at, byte(c))
	}
	dst := make([]int32, v.words)
	before := b.visits
	m.Mask(dst)
	if n := b.visits - before; n > 500_000 {
		t.Errorf("the last mask took %d nodes", n)
	}
}
