package grammar

// array is the rule of arrays that satisfy f.
func (c *compiler) array(f flat) (int32, error) {
	id, found, err := c.reserve(f.key("array"), f.pointer())
	if found || err != nil {
		return id, err
	}
	fixed, least, most := 1, 0, -1
	for _, s := range f {
		fixed = max(fixed, len(s.prefix))
		least = max(least, s.minItems)
		if s.maxItems >= 0 && (most < 0 || s.maxItems < most) {
			most = s.maxItems
		}
	}
	b := newBuilder()
	c.rules[id] = &rule{} // nothing, unless it is made
	if most >= 0 && least > most {
		return id, nil
	}
	if most >= 0 {
		fixed = min(fixed, most)
	}
	opened := b.state()
	b.bytes(start, '[', '[', opened)
	at := b.space(opened)
	if least == 0 {
		b.bytes(at, ']', ']', end)
	}
	for i := range fixed {
		if i > 0 {
			at = b.comma(at)
		}
		items, err := c.rulesFor(f.item(i))
		if err != nil {
			return 0, err
		}
		to := b.state()
		b.call(at, items, to)
		at = to
		if i+1 >= least && i+1 < fixed {
			b.bytes(b.space(at), ']', ']', end)
		}
	}
	// Behind the fixed ones each further item comes with a comma, which is counted.
	least = max(least-fixed, 0)
	if most >= 0 {
		most -= fixed
	}
	if fixed > 0 {
		counted := least > 0 || most >= 0
		if most != 0 {
			items, err := c.rulesFor(f.item(fixed))
			if err != nil {
				return 0, err
			}
			if counted {
				b.mark = count
			}
			comma := b.state()
			b.bytes(at, ',', ',', comma)
			b.mark = plain
			b.call(b.space(comma), items, at)
		}
		if counted {
			b.mark = done
		}
		b.bytes(b.space(at), ']', ']', end)
	}
	r := b.rule(maxStates - c.states)
	if err := c.work.spend(b.work, f.pointer()); err != nil {
		return 0, err
	}
	if r != nil && r.mark != nil {
		r.min, r.max = int32(least), int32(most)
	}
	return id, c.set(id, r, f.pointer())
}

// item is what the item at an index must satisfy.
func (f flat) item(i int) conj {
	var out conj
	for _, s := range f {
		if i < len(s.prefix) {
			out = append(out, s.prefix[i])
		} else if s.items != nil {
			out = append(out, s.items)
		}
	}
	return out
}
