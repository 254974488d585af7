package grammar

import (
	"fmt"
	"slices"
	"strings"
)

// conj is schemas that a value must satisfy all.
type conj []*schema

// flat is a conj whose references and combinations are followed: of each schema in it only its own keywords are still to be heeded.
// Sorted by id, each once.
type flat []*schema

// compiler makes the rules of a schema's grammar.
type compiler struct {
	doc    *document
	rules  []*rule          // the first is kept for the root
	known  map[string]int32 // rules by what they were made of
	checks map[*schema]check
	states int
	work   *work

	expressions map[expression]*runeDFA
	strings     map[*runeDFA]int32 // rules
}

type check uint8

const (
	unchecked check = iota
	checking
	checked
)

const (
	maxAlternatives = 256 // of one value's schemas
	maxRules        = 20_000
)

func newCompiler(d *document) *compiler {
	return &compiler{doc: d, rules: make([]*rule, 1), work: newWork(), known: map[string]int32{}, checks: map[*schema]check{},
		expressions: map[expression]*runeDFA{}, strings: map[*runeDFA]int32{}}
}

// pointer names where a conj stands.
func (s conj) pointer() string {
	if len(s) == 0 {
		return ""
	}
	return s[0].at
}

// acyclic makes sure that a schema does not refer to itself for the very same value.
func (c *compiler) acyclic(s *schema) error {
	switch c.checks[s] {
	case checking:
		return bad(s.at, "refers to itself with nothing in between")
	case checked:
		return nil
	}
	c.checks[s] = checking
	parts := slices.Concat(s.allOf, s.anyOf, s.oneOf)
	if s.ref != "" {
		t, err := c.doc.resolve(s)
		if err != nil {
			return err
		}
		parts = append(parts, t)
	}
	for _, p := range parts {
		if err := c.acyclic(p); err != nil {
			return err
		}
	}
	c.checks[s] = checked
	return nil
}

// alternatives follows references and combinations: a value satisfies all of s exactly if it satisfies one of the alternatives.
func (c *compiler) alternatives(s conj) ([]flat, error) {
	for _, x := range s {
		if err := c.acyclic(x); err != nil {
			return nil, err
		}
	}
	var out []flat
	var follow func(todo []*schema, choices [][]*schema, f flat) error
	follow = func(todo []*schema, choices [][]*schema, f flat) error {
		todo, choices, f = slices.Clip(todo), slices.Clip(choices), slices.Clone(f)
		for len(todo) > 0 {
			if err := c.work.spend(8+len(f), s.pointer()); err != nil {
				return err
			}
			x := todo[0]
			todo = todo[1:]
			if x.never {
				return nil
			}
			if slices.Contains(f, x) {
				continue
			}
			f = append(f, x)
			if x.ref != "" {
				t, err := c.doc.resolve(x)
				if err != nil {
					return err
				}
				todo = append(todo, t)
			}
			todo = append(todo, x.allOf...)
			if x.anyOf != nil {
				choices = append(choices, x.anyOf)
			}
			if x.oneOf != nil {
				if err := c.apart(x); err != nil {
					return err
				}
				choices = append(choices, x.oneOf)
			}
		}
		if len(choices) == 0 {
			if f.kinds() != 0 {
				slices.SortFunc(f, func(a, b *schema) int { return a.id - b.id })
				if !slices.ContainsFunc(out, func(o flat) bool { return slices.Equal(o, f) }) {
					out = append(out, f)
				}
			}
			if err := c.work.spend(8*len(out), s.pointer()); err != nil {
				return err
			}
			if len(out) > maxAlternatives {
				return bad(s.pointer(), "combines to more than %d alternatives", maxAlternatives)
			}
			return nil
		}
		for _, one := range choices[0] {
			if err := follow([]*schema{one}, choices[1:], f); err != nil {
				return err
			}
		}
		return nil
	}
	return out, follow(s, nil, nil)
}

// apart makes sure that no value satisfies two schemas of a oneOf.
func (c *compiler) apart(s *schema) error {
	if s.apart {
		return nil
	}
	s.apart = true
	for i, a := range s.oneOf {
		for j, b := range s.oneOf[:i] {
			ok, err := c.disjoint(conj{a}, conj{b}, s.kinds, 0)
			if err != nil {
				return err
			}
			if !ok {
				return bad(fmt.Sprintf("%s/oneOf/%d", s.at, i), "may share values with alternative %d; oneOf is supported where alternatives "+
					"are told apart by type, range, or a required property's const or enum: use anyOf", j)
			}
		}
	}
	return nil
}

func (f flat) kinds() kinds {
	k := anyKind
	for _, s := range f {
		k = k.and(s.kinds)
	}
	return k
}

// enum is what an enum or const leaves; false where there is none.
func (c *compiler) enum(f flat) ([]value, bool, error) {
	for _, s := range f {
		if !s.enums {
			continue
		}
		var out []value
		for _, v := range s.enum {
			ok, err := c.satisfies(&v, conj(f))
			if err != nil {
				return nil, true, err
			}
			steps := 0
			if ok && !v.among(out, &steps) {
				out = append(out, v)
			}
			if err := c.work.spend(steps, s.at); err != nil {
				return nil, true, err
			}
		}
		return out, true, nil
	}
	return nil, false, nil
}

// rulesFor makes rules of which each is a part of the texts that satisfy some schemas.
func (c *compiler) rulesFor(s conj) ([]int32, error) {
	all, err := c.alternatives(s)
	if err != nil {
		return nil, err
	}
	var out []int32
	var given []value // of enums and consts, those of all alternatives
	givers := "literals"
	for _, f := range all {
		values, limited, err := c.enum(f)
		if err != nil {
			return nil, err
		}
		if limited {
			given, givers = append(given, values...), f.key(givers)+";"
			continue
		}
		for k := null; k <= object; k <<= 1 {
			if f.kinds()&kinds(k) == 0 {
				continue
			}
			var r int32
			switch k {
			case null:
				r, err = c.literals([]value{{kind: null}}, "null", "")
			case boolean:
				r, err = c.literals([]value{{kind: boolean}, {kind: boolean, truth: true}}, "boolean", "")
			case number:
				r, err = c.number(f)
			case text:
				r, err = c.text(f)
			case array:
				r, err = c.array(f)
			case object:
				r, err = c.object(f)
			}
			if err != nil {
				return nil, err
			}
			if r >= 0 {
				out = append(out, r)
			}
		}
	}
	if len(given) > 0 {
		r, err := c.literals(given, givers, s.pointer())
		if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	slices.Sort(out)
	out = slices.Compact(out)
	if len(out) > maxFrames {
		return nil, bad(s.pointer(), "has more than %d alternatives", maxFrames)
	}
	return out, nil
}

// key names what a rule was made of.
func (f flat) key(prefix string) string {
	var b strings.Builder
	b.WriteString(prefix)
	for _, s := range f {
		fmt.Fprintf(&b, ":%d", s.id)
	}
	return b.String()
}

func (f flat) pointer() string { return conj(f).pointer() }

// reserve gives a rule its number before it is made, so that it can call itself; found tells that it has one.
func (c *compiler) reserve(key string, at string) (id int32, found bool, err error) {
	if id, ok := c.known[key]; ok {
		return id, true, nil
	}
	if len(c.rules) >= maxRules {
		return 0, false, bad(at, "the schema needs more than %d rules", maxRules)
	}
	id = int32(len(c.rules))
	c.known[key] = id
	c.rules = append(c.rules, nil)
	return id, false, nil
}

// set makes a reserved rule.
func (c *compiler) set(id int32, r *rule, at string) error {
	if r != nil {
		c.states += int(r.states)
	}
	if r == nil || c.states > maxStates {
		return bad(at, "the schema needs more than %d states", maxStates)
	}
	c.rules[id] = r
	return nil
}

// build is set for an automaton that is not deterministic yet.
func (c *compiler) build(id int32, b *builder, at string) error {
	r := b.rule(maxStates - c.states)
	if err := c.work.spend(b.work, at); err != nil {
		return err
	}
	return c.set(id, r, at)
}

// literals is the rule of some given values, which key names.
func (c *compiler) literals(values []value, key, at string) (int32, error) {
	id, found, err := c.reserve(key, at)
	if found || err != nil {
		return id, err
	}
	b := newBuilder()
	for i := range values {
		b.skip(b.literal(start, &values[i]), end)
		if len(b.edges) > maxStates {
			return 0, bad(at, "the values need more than %d states", maxStates)
		}
	}
	return id, c.build(id, b, at)
}
