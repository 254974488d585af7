package grammar

import "encoding/json"

// Grammar is a language of texts: a pushdown automaton over bytes. It is immutable, knows no vocabulary, and may be used from many
// goroutines. A Vocabulary makes masks for it.
type Grammar struct {
	rules []*rule // the root is the first
}

// maxStates bounds the automata of one grammar, all together.
const maxStates = 200_000

// Compile makes the grammar of the JSON texts that satisfy a JSON Schema: see the package's comment for what is understood. Where a
// keyword is not supported, or no value can satisfy the schema, the error is an *Error with a JSON pointer to the place.
func Compile(schema json.RawMessage) (*Grammar, error) {
	v, err := parseValue(schema)
	if err != nil {
		return nil, err
	}
	d, err := readDocument(&v)
	if err != nil {
		return nil, err
	}
	c := newCompiler(d)
	root, err := c.rulesFor(conj{d.root})
	if err != nil {
		return nil, err
	}
	return c.finish(root)
}

// Object is the grammar of any JSON object: OpenAI's response_format json_object.
func Object() *Grammar {
	g, err := Compile(json.RawMessage(`{"type":"object"}`))
	if err != nil {
		panic(err)
	}
	return g
}

// Regex is the grammar of the texts that match a regular expression as a whole. The expressions are those of the keyword pattern.
func Regex(pattern string) (*Grammar, error) {
	w := newWork()
	d, err := compilePattern(pattern, true, w, "")
	if err != nil {
		return nil, err
	}
	r, err := d.bytes(false, w, "")
	if err != nil {
		return nil, err
	}
	return single(r, w, "the expression %.100q matches nothing", pattern)
}

// Choice is the grammar of some given texts, which must not be empty.
func Choice(texts []string) (*Grammar, error) {
	if len(texts) == 0 {
		return nil, bad("", "there must be at least one choice")
	}
	b := newBuilder()
	total := 0
	for i, t := range texts {
		if t == "" {
			return nil, bad("", "choice %d is empty", i)
		}
		if total += len(t); total > maxStates {
			return nil, bad("", "the choices have more than %d bytes", maxStates)
		}
		b.textTo(start, t, end)
	}
	return single(b.rule(maxStates), newWork(), "there is no choice")
}

func single(r *rule, w *work, empty string, args ...any) (*Grammar, error) {
	g := &Grammar{rules: []*rule{r}}
	if r == nil {
		return nil, bad("", "it needs more than %d states", maxStates)
	}
	switch ok, err := g.prune(w); {
	case err != nil:
		return nil, err
	case !ok:
		return nil, bad("", empty, args...)
	}
	return g, nil
}

// finish makes a grammar of the rules, of which root are the alternatives of the whole text.
func (c *compiler) finish(root []int32) (*Grammar, error) {
	b := newBuilder()
	b.call(start, root, end)
	c.rules[0] = b.rule(maxStates)
	g := &Grammar{rules: c.rules}
	switch ok, err := g.prune(c.work); {
	case err != nil:
		return nil, err
	case !ok:
		return nil, bad("", "no value of finite size satisfies the schema")
	}
	return g, nil
}

// size is about its bytes.
func (g *Grammar) size() int {
	n := 0
	for _, r := range g.rules {
		n += 512 + 4*len(r.next) + len(r.mark) + 2*len(r.final) + 24*len(r.calls)
		for _, c := range r.calls {
			n += 8 * len(c)
		}
	}
	return n
}

// Accepts reports whether a text is one of the grammar's.
func (g *Grammar) Accepts(text []byte) bool {
	p := newStacks(g)
	at := p.begin()
	for _, b := range text {
		if at = p.step(at, b); at == nil {
			return false
		}
	}
	return at.out
}
