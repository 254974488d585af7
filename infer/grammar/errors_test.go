package grammar

import (
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
)

// TestRefusals: what cannot be compiled is refused at its place.
func TestRefusals(t *testing.T) {
	var wide []string
	for i := range 200 {
		wide = append(wide, fmt.Sprintf(`{"type":"string","pattern":"^%d+$"}`, i))
	}
	for _, c := range []struct{ schema, pointer, message string }{
		{``, "", "not JSON"},
		{`{"a":1,`, "", "not JSON"},
		{`{} {}`, "", "more than one"},
		{"{\"a\":\"\xff\"}", "", "not UTF-8"},
		{`7`, "", "object or a boolean"},
		{`{"properties":{"a":{"type":"string","type":"null"}}}`, "/properties/a/type", "twice"},
		{`{"properties":{"a/b~c":{"not":{}}}}`, "/properties/a~1b~0c/not", "is not supported"},
		{`{"items":{"type":"strin"}}`, "/items/type", "unknown type"},
		{`{"items":[{}]}`, "/items", "prefixItems"},
		{`{"anyOf":[]}`, "/anyOf", "not empty"},
		{`{"anyOf":[{},{"uniqueItems":true}]}`, "/anyOf/1/uniqueItems", "is not supported"},
		{`{"required":["a",1]}`, "/required/1", "must be a string"},
		{`{"minLength":-1}`, "/minLength", "at least 0"},
		{`{"maxItems":1e30}`, "/maxItems", "at most"},
		{`{"multipleOf":0}`, "/multipleOf", "above 0"},
		{`{"minimum":"1"}`, "/minimum", "must be a number"},
		{`{"minimum":1e999}`, "/minimum", "out of range"},
		{`{"pattern":"(?=a)"}`, "/pattern", "not supported"},
		{`{"properties":{"x":{"$ref":"#/$defs/none"}}}`, "/properties/x/$ref", "leads nowhere"},
		{`{"$ref":"https://example.com/s.json"}`, "/$ref", "not within"},
		{`{"$ref":"#"}`, "", "refers to itself"},
		{`{"$defs":{"a":{"anyOf":[{"type":"null"},{"$ref":"#/$defs/b"}]},"b":{"allOf":[{"$ref":"#/$defs/a"}]}},"$ref":"#/$defs/a"}`, "/$defs/a", "refers to itself"},
		{`{"oneOf":[{"type":"integer"},{"type":"number"}]}`, "/oneOf/1", "may share values"},
		{`{"items":{"minProperties":3}}`, "/items/minProperties", "supported up to"},
		{`{"type":"object","required":["a"],"properties":{"a":false}}`, "", "no value"},
		{`{"type":"object","properties":{"a":{"$ref":"#"}},"required":["a"]}`, "", "no value"},
		{`{"type":"array","prefixItems":[{}],"items":{"enum":[]},"minItems":2}`, "", "no value"},
		{`{"type":"integer","minimum":1.2,"maximum":1.8}`, "", "no value"},
		{`{"type":"string","minLength":3,"maxLength":2}`, "", "no value"},
		{`{"multipleOf":123457}`, "/multipleOf", "supported up to"},
		{`{"anyOf":[` + strings.Join(wide, ",") + `]}`, "", "alternatives"},
		{strings.Repeat(`{"items":`, 300) + `{}` + strings.Repeat(`}`, 300), strings.Repeat("/items", 201), "nested deeper"},
	} {
		_, err := Compile(json.RawMessage(c.schema))
		var bad *Error
		if !errors.As(err, &bad) || !errors.Is(err, ErrSchema) {
			t.Errorf("%.100s: %v", c.schema, err)
		} else if bad.Pointer != c.pointer || !strings.Contains(bad.Message, c.message) {
			t.Errorf("%.100s: at %q: %s, want at %q: %s", c.schema, bad.Pointer, bad.Message, c.pointer, c.message)
		}
	}
	for _, texts := range [][]string{nil, {}, {""}, {"a", ""}} {
		if _, err := Choice(texts); !errors.Is(err, ErrSchema) {
			t.Errorf("the choice of %q: %v", texts, err)
		}
	}
}

// TestOneOf: alternatives that are seen to be disjoint.
func TestOneOf(t *testing.T) {
	for _, s := range []string{
		`{"oneOf":[{"type":"string"},{"type":["null","integer"]}]}`,
		`{"oneOf":[{"maximum":1,"type":"number"},{"exclusiveMinimum":1,"type":"number"}]}`,
		`{"oneOf":[{"type":"string","pattern":"^a"},{"type":"string","pattern":"^b"}]}`,
		`{"oneOf":[{"type":"string","maxLength":2},{"type":"string","minLength":3}]}`,
		`{"oneOf":[{"enum":[1,2]},{"enum":[3,"a"]},{"type":"array"}]}`,
		`{"oneOf":[{"const":5},{"type":"integer","maximum":4}]}`,
		`{"type":"object","oneOf":[{"properties":{"k":{"const":"a"}},"required":["k"]},{"properties":{"k":{"enum":["b","c"]}},"required":["k"]}]}`,
		`{"oneOf":[{"type":"object","properties":{"a":{}},"additionalProperties":false},{"type":"object","required":["b"]}]}`,
		`{"oneOf":[{"type":"array","maxItems":1},{"type":"array","minItems":2}]}`,
		`{"oneOf":[{"type":"array","minItems":1,"items":{"type":"string"}},{"type":"array","minItems":1,"items":{"type":"null"}}]}`,
	} {
		if _, err := Compile(json.RawMessage(s)); err != nil {
			t.Errorf("%s: %v", s, err)
		}
	}
}

func TestCache(t *testing.T) {
	v, _ := toyVocabulary()
	c := NewCache(v, 2)
	schema := func(n int) *Bound {
		b, err := c.Schema(t.Context(), "t", json.RawMessage(fmt.Sprintf(`{"type":"string","maxLength":%d}`, n)))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	one, two := schema(1), schema(2)
	if schema(1) != one || schema(2) != two {
		t.Error("a grammar is compiled twice")
	}
	schema(1)
	schema(3) // the second goes
	if schema(1) != one {
		t.Error("the one asked for last is gone")
	}
	if schema(2) == two {
		t.Error("more than two are kept")
	}
	if _, err := c.Schema(t.Context(), "t", json.RawMessage(`{"not":{}}`)); !errors.Is(err, ErrSchema) {
		t.Error(err)
	}
	a, err := c.Choice(t.Context(), "t", []string{"a", "b"})
	if err != nil {
		t.Fatal(err)
	}
	b, err := c.Choice(t.Context(), "t", []string{"a\"b"})
	if err != nil || a == b {
		t.Error("two choices are one", err)
	}
	// Many goroutines with one grammar and with several see the same masks.
	g, err := c.Schema(t.Context(), "t", json.RawMessage(benchSchema))
	if err != nil {
		t.Fatal(err)
	}
	masks := func(b *Bound) (out [][]int32) {
		m := b.New()
		for i := range len(benchText) {
			dst := make([]int32, v.words)
			m.Mask(dst)
			out = append(out, dst)
			m.Accept(1 + int(benchText[i]))
		}
		if !m.Complete() {
			t.Error("the text is not complete")
		}
		return out
	}
	want := fmt.Sprint(masks(v.Bind(g.g)))
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			b := g
			if i%2 == 1 {
				b = v.Bind(g.g)
			}
			if fmt.Sprint(masks(b)) != want {
				t.Error("other masks")
			}
		})
	}
	all.Wait()
}

// TestStore: masks that were not used for longest go first, and no more is kept than allowed.
func TestStore(t *testing.T) {
	s := newStore(3 * (&local{mask: make([]int32, 10)}).size())
	made := 0
	ask := func(state int32) {
		s.get(maskKey{spot: spot{state: state}}, func() *local {
			made++
			return &local{mask: make([]int32, 10)}
		})
	}
	for _, state := range []int32{1, 2, 3, 1, 4, 1, 3, 4} {
		ask(state)
	}
	if made != 4 || len(s.known) != 3 || s.bytes > s.most {
		t.Errorf("%d were made, %d are kept", made, len(s.known))
	}
	ask(2)
	if made != 5 {
		t.Error("the one not used for longest was kept")
	}
}

// TestForgetting: what a grammar remembers is bounded, and forgetting changes no mask.
func TestForgetting(t *testing.T) {
	v, _ := toyVocabulary()
	g, err := Compile(json.RawMessage(`true`))
	if err != nil {
		t.Fatal(err)
	}
	b, fresh := v.Bind(g), v.Bind(g)
	m := b.New()
	for i := range 3000 { // deeper and deeper
		dst := make([]int32, v.words)
		m.Mask(dst)
		m.Accept(1 + int('['))
		if i%500 == 499 {
			b.mu.Lock()
			b.stacks.forget()
			b.mu.Unlock()
			n := fresh.New()
			for range i + 1 {
				n.Accept(1 + int('['))
			}
			again, want := make([]int32, v.words), make([]int32, v.words)
			m.Mask(again)
			n.Mask(want)
			if fmt.Sprint(again) != fmt.Sprint(want) {
				t.Fatalf("at depth %d the mask is another", i+1)
			}
		}
	}
	for range 3000 {
		m.Accept(1 + int(']'))
	}
	if !m.Complete() {
		t.Error("the brackets are not closed")
	}
	if n := b.stacks.held; n > maxHeld {
		t.Errorf("%d frames and ways are remembered", n)
	}
	m = b.New()
	m.Accept(1 + int('}')) // not allowed
	dst := make([]int32, v.words)
	m.Mask(dst)
	if m.Complete() || fmt.Sprint(dst) != fmt.Sprint(make([]int32, v.words)) {
		t.Error("a text goes on behind a token that was not allowed")
	}
}

// TestCacheBytes: large grammars go before there are too many bytes of them.
func TestCacheBytes(t *testing.T) {
	v, _ := toyVocabulary()
	c := NewCache(v, 128)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for i := range 6 { // bytes of all kinds: a wide automaton
		var text []rune
		for j := range 40_000 {
			text = append(text, rune(1+(j*(2*i+1))%0x7FF))
		}
		if _, err := c.Choice(t.Context(), "t", []string{string(text)}); err != nil {
			t.Fatal(err)
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if n := int64(after.HeapAlloc) - int64(before.HeapAlloc); n > maxGrammarBytes+maxGrammarBytes/4 {
		t.Errorf("%d MB are kept", n>>20)
	}
	runtime.KeepAlive(c)
	if len(c.known) != c.order.Len() || len(c.known) == 0 || len(c.known) == 6 {
		t.Errorf("%d grammars are kept", len(c.known))
	}
}
