package grammar

import (
	"encoding/json"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"weak"
)

// arraysOf are a vocabulary of tokens, the first of which ends a text, and null or nested arrays of so many kinds.
func arraysOf(t *testing.T, tokens [][]byte, n int) (*Vocabulary, *Grammar) {
	t.Helper()
	v := NewVocabulary(len(tokens), func(id int) []byte {
		if id == 0 {
			return nil
		}
		return tokens[id]
	}, []int{0})
	kinds := []string{`{"type":"null"}`}
	for i := range n {
		kinds = append(kinds, fmt.Sprintf(`{"type":"array","items":{"$ref":"#"},"maxItems":%d}`, 5+i))
	}
	g, err := Compile(json.RawMessage(`{"anyOf":[` + strings.Join(kinds, ",") + `]}`))
	if err != nil {
		t.Fatal(err)
	}
	return v, g
}

// behind is where a token leads, byte by byte; nil: it is not allowed.
func (s *stacks) behind(at *config, token []byte) *config {
	for _, x := range token {
		if at != nil {
			at = s.step(at, x)
		}
	}
	return at
}

// TestManyCallers: where arrays of several kinds may stand at each level, a token that ends many levels takes no more work with each of them, and the
// mask is the one found byte by byte.
func TestManyCallers(t *testing.T) {
	tokens := toyTokens()
	for n := 2; n <= 12; n++ {
		tokens = append(tokens, []byte(strings.Repeat("]", n)), []byte(strings.Repeat("]", n)+","))
	}
	v, g := arraysOf(t, tokens, 5)
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
			to := oracle.behind(at, tokens[id])
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

// TestMaskWork: where many alternatives stand at each level a mask takes bounded work, that of its steps included; it holds right tokens alone, all of
// one byte among them, and is the same whatever was found before.
func TestMaskWork(t *testing.T) {
	tokens := toyTokens()
	alphabet := []string{"[", "]", "null", ",", " ", "[]", "\n "}
	for i := range len(alphabet) * len(alphabet) * len(alphabet) {
		token := alphabet[i%7] + alphabet[i/7%7] + alphabet[i/49]
		tokens = append(tokens, []byte(token), []byte(token+token+token), []byte("["+token+token+token+"["))
	}
	v, g := arraysOf(t, tokens, 16)
	b := v.Bind(g)
	m, oracle := b.New(), newStacks(g)
	at := oracle.begin()
	bounded := false
	for i, c := range "[[" {
		dst := make([]int32, v.words)
		before := b.spent()
		m.Mask(dst)
		n := b.spent() - before
		if bounded = bounded || n > maxMaskWork; n > 2*maxMaskWork {
			t.Errorf("the mask behind %d bytes took %d nodes", i, n)
		}
		for id := 1; id < len(tokens); id++ {
			to := oracle.behind(at, tokens[id])
			if got := dst[id/32]>>(id%32)&1 == 1; got && to == nil || !got && to != nil && len(tokens[id]) == 1 {
				t.Fatalf("behind %d bytes %q is allowed: %v", i, tokens[id], got)
			}
		}
		fresh := NewVocabulary(len(tokens), func(id int) []byte { return v.texts[id] }, []int{0}).Bind(g).New()
		for _, x := range "[["[:i] {
			fresh.Accept(1 + int(x))
		}
		other := make([]int32, v.words)
		fresh.Mask(other)
		if !slices.Equal(dst, other) {
			t.Errorf("behind %d bytes the mask depends on what was found before", i)
		}
		m.Accept(1 + int(c))
		at = oracle.step(at, byte(c))
	}
	if !bounded {
		t.Error("no mask came to the bound")
	}
}

// TestForgottenIsFreed: what was forgotten is not held by the configurations that masks are kept for.
func TestForgottenIsFreed(t *testing.T) {
	g, err := Compile(json.RawMessage(`true`))
	if err != nil {
		t.Fatal(err)
	}
	s := newStacks(g)
	c := s.begin()
	next := weak.Make(s.step(c, '['))
	runtime.GC()
	if next.Value() == nil {
		t.Fatal("it was not remembered")
	}
	s.forget()
	runtime.GC()
	if next.Value() != nil {
		t.Error("what was forgotten is still held")
	}
	runtime.KeepAlive(c)
}
