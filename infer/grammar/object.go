package grammar

import "slices"

// member is a property that is named in a schema: its place among the members is fixed.
type member struct {
	name     string
	required bool
	values   []int32 // rules; none: the property must be absent
}

// extras are properties that are not named: any number of them, behind those that are.
type extras struct {
	keys   []int32 // rules
	values []int32
}

// object is the rule of objects that satisfy f. Named properties come in the order of the schema.
func (c *compiler) object(f flat) (int32, error) {
	id, found, err := c.reserve(f.key("object"), f.pointer())
	if found || err != nil {
		return id, err
	}
	c.rules[id] = &rule{}
	members, err := c.members(f)
	if err != nil {
		return 0, err
	}
	more, err := c.extras(f, members)
	if err != nil {
		return 0, err
	}
	least, most := 0, -1
	counter := f.pointer()
	for _, s := range f {
		if s.minProperties > least {
			least, counter = s.minProperties, s.at
		}
		if s.maxProperties >= 0 && (most < 0 || s.maxProperties < most) {
			most = s.maxProperties
		}
	}
	required := 0
	needed := 0
	for i, m := range members {
		if m.required {
			required++
			needed = i + 1
		}
	}
	if least <= required {
		least = 0
	}
	if most >= len(members) && len(more) == 0 {
		most = -1
	}
	if len(more) > 0 && least > required+1 {
		// A key may come twice and then counts once; up to here that does no harm.
		return 0, bad(counter+"/minProperties", "is supported up to the number of required properties and one, unless all properties are named")
	}
	if (least > 0 || most >= 0) && (len(members)+1)*(max(least, most)+1) > 20_000 {
		return 0, bad(f.pointer(), "too many properties to count")
	}
	b := newBuilder()
	o := objectBuilder{builder: b, members: members, extras: more, needed: needed, least: least, most: most, places: map[place]int32{}}
	opened := b.state()
	b.bytes(start, '{', '{', opened)
	b.skip(b.space(opened), o.state(place{at: 0}))
	for len(o.todo) > 0 {
		p := o.todo[len(o.todo)-1]
		o.todo = o.todo[:len(o.todo)-1]
		o.from(p)
		if len(b.edges) > 4*maxStates {
			return 0, bad(f.pointer(), "the properties need more than %d states", maxStates)
		}
	}
	return id, c.build(id, b, f.pointer())
}

// members are the named properties, the required ones among them.
func (c *compiler) members(f flat) ([]member, error) {
	var out []member
	places := map[string]int{}
	add := func(name string) *member {
		i, ok := places[name]
		if !ok {
			i = len(out)
			places[name] = i
			out = append(out, member{name: name})
		}
		return &out[i]
	}
	for _, s := range f {
		for _, p := range s.properties {
			add(p.name)
		}
	}
	for _, s := range f {
		for _, name := range s.required {
			add(name).required = true
		}
	}
	for i := range out {
		m := &out[i]
		allowed, err := c.named(f, m.name)
		if err != nil {
			return nil, err
		}
		if allowed {
			of, err := c.property(f, m.name)
			if err != nil {
				return nil, err
			}
			if m.values, err = c.rulesFor(of); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

// named reports whether propertyNames lets a property be.
func (c *compiler) named(f flat, name string) (bool, error) {
	for _, s := range f {
		if s.names != nil {
			if ok, err := c.satisfies(&value{kind: text, str: name}, conj{s.names}); !ok || err != nil {
				return false, err
			}
		}
	}
	return true, nil
}

// property is what the value of a property must satisfy.
func (c *compiler) property(f flat, name string) (conj, error) {
	var out conj
	for _, s := range f {
		of, err := c.propertyOf(s, name)
		if err != nil {
			return nil, err
		}
		out = append(out, of...)
	}
	return out, nil
}

func (c *compiler) propertyOf(s *schema, name string) (out conj, err error) {
	if err := c.work.spend(8+len(s.properties), s.at); err != nil {
		return nil, err
	}
	for _, p := range s.properties {
		if p.name == name {
			out = append(out, p.schema)
		}
	}
	for _, p := range s.patterns {
		d, err := c.pattern(p.name, p.at)
		if err != nil {
			return nil, err
		}
		if d.match(name) {
			out = append(out, p.schema)
		}
	}
	if out == nil && s.additional != nil {
		out = conj{s.additional}
	}
	return out, nil
}

// maxPatterns bounds the patternProperties that meet in one object: their combinations are told apart.
const maxPatterns = 6

// extras are the kinds of unnamed properties: one for each set of patterns that a name may match.
func (c *compiler) extras(f flat, members []member) ([]extras, error) {
	var patterns []property
	for _, s := range f {
		patterns = append(patterns, s.patterns...)
	}
	if len(patterns) > maxPatterns {
		return nil, bad(f.pointer(), "more than %d patternProperties apply to one object", maxPatterns)
	}
	var names []string
	for _, m := range members {
		names = append(names, m.name)
	}
	filters, err := c.nameFilters(f)
	if err != nil {
		return nil, err
	}
	var out []extras
	for set := range 1 << len(patterns) {
		var keys []*runeDFA
		matched := map[*schema]bool{}
		for i, p := range patterns {
			d, err := c.pattern(p.name, p.at)
			if err != nil {
				return nil, err
			}
			if set>>i&1 == 0 {
				d = d.complement()
			} else {
				matched[p.schema] = true
			}
			keys = append(keys, d)
		}
		var of conj
		for _, s := range f {
			any := false
			for _, p := range s.patterns {
				if matched[p.schema] {
					of, any = append(of, p.schema), true
				}
			}
			if !any && s.additional != nil {
				of = append(of, s.additional)
			}
		}
		if slices.ContainsFunc(of, func(s *schema) bool { return s.never }) {
			continue
		}
		rules, err := c.keys(keys, filters, names, f.pointer())
		if err != nil {
			return nil, err
		}
		if len(rules) == 0 {
			continue
		}
		values, err := c.rulesFor(of)
		if err != nil {
			return nil, err
		}
		if len(values) > 0 {
			out = append(out, extras{rules, values})
		}
	}
	return out, nil
}

// nameFilters are the automata of propertyNames: a name must match one. None: all names do.
func (c *compiler) nameFilters(f flat) ([]*runeDFA, error) {
	var of conj
	for _, s := range f {
		if s.names != nil {
			of = append(of, s.names)
		}
	}
	if of == nil {
		return nil, nil
	}
	all, err := c.alternatives(of)
	if err != nil {
		return nil, err
	}
	out := []*runeDFA{} // not nil: without an alternative no name will do
	for _, g := range all {
		values, limited, err := c.enum(g)
		if err != nil {
			return nil, err
		}
		if limited {
			var texts []string
			for _, v := range values {
				if v.kind == text {
					texts = append(texts, v.str)
				}
			}
			out = append(out, textsDFA(texts))
			continue
		}
		if g.kinds()&kinds(text) == 0 {
			continue
		}
		d, err := c.textDFA(g)
		if err != nil {
			return nil, err
		}
		out = append(out, d)
	}
	return out, nil
}

// keys are rules of property names: those in all of the automata and in one of the filters, and not among names.
func (c *compiler) keys(all, filters []*runeDFA, names []string, at string) ([]int32, error) {
	if len(all) == 0 && filters == nil && len(names) == 0 {
		r, err := c.text(nil)
		return []int32{r}, err
	}
	if filters == nil {
		filters = []*runeDFA{anyDFA()}
	}
	var out []int32
	for _, d := range filters {
		var err error
		for _, o := range append(slices.Clone(all), textsDFA(names).complement()) {
			if d, err = d.and(o, c.work, at); err != nil {
				return nil, err
			}
		}
		if d.empty() {
			continue
		}
		r, err := c.dfaRule(d, at)
		if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return out, nil
}

// place is where an object stands between two members.
type place struct {
	at    int  // the next member; len(members): the extras
	any   bool // there is a member before
	count int  // of them, as far as they are counted
	comma bool // a comma was read
}

// objectBuilder makes the automaton between an object's braces.
type objectBuilder struct {
	*builder
	members []member
	extras  []extras
	needed  int // behind the last required member
	least   int // of properties
	most    int // none: −1
	places  map[place]int32
	todo    []place
}

func (o *objectBuilder) state(p place) int32 {
	s, ok := o.places[p]
	if !ok {
		s = o.builder.state()
		o.places[p] = s
		o.todo = append(o.todo, p)
	}
	return s
}

// counted is a place after one more member.
func (o *objectBuilder) counted(p place) place {
	p.any, p.comma = true, false
	switch {
	case o.most >= 0:
		p.count++
	case o.least > 0:
		p.count = min(p.count+1, o.least)
	}
	return p
}

// from adds what may follow at a place.
func (o *objectBuilder) from(p place) {
	s := o.places[p]
	full := o.most >= 0 && p.count >= o.most
	if p.any && !p.comma { // behind a member: a comma, or the end
		if !full {
			q := p
			q.comma = true
			o.skip(o.builder.comma(s), o.state(q))
		}
		if o.ends(p) {
			o.bytes(o.space(s), '}', '}', end)
		}
		return
	}
	if !p.any && o.ends(p) {
		o.bytes(s, '}', '}', end)
	}
	if full {
		return
	}
	if p.at < len(o.members) {
		m := o.members[p.at]
		next := p
		next.at++
		if !m.required {
			o.skip(s, o.state(next))
		}
		if len(m.values) > 0 {
			next = o.counted(next)
			o.call(o.colon(o.text(s, quoteJSON(m.name))), m.values, o.state(next))
		}
		return
	}
	next := o.counted(p)
	for _, e := range o.extras {
		key := o.builder.state()
		o.call(s, e.keys, key)
		o.call(o.colon(key), e.values, o.state(next))
	}
}

// ends reports whether no member is missing at a place.
func (o *objectBuilder) ends(p place) bool {
	return p.at >= o.needed && p.count >= o.least
}
