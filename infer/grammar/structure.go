package grammar

// What may stand between the parts of arrays and objects: at most one space, or a line break and an indentation.

// maxIndent is the most spaces after a line break.
const maxIndent = 16

// space allows white space, and returns where it leads.
func (b *builder) space(from int32) int32 {
	to := b.state()
	b.skip(from, to)
	b.bytes(from, ' ', ' ', to)
	at := b.state()
	b.bytes(from, '\n', '\n', at)
	b.skip(at, to)
	for range maxIndent {
		next := b.state()
		b.bytes(at, ' ', ' ', next)
		b.skip(next, to)
		at = next
	}
	return to
}

// colon leads over what is between a key and its value.
func (b *builder) colon(from int32) int32 {
	at, to := b.state(), b.state()
	b.bytes(from, ':', ':', at)
	b.skip(at, to)
	b.bytes(at, ' ', ' ', to)
	return to
}

// comma leads over what is between two members.
func (b *builder) comma(from int32) int32 {
	at := b.state()
	b.bytes(from, ',', ',', at)
	return b.space(at)
}

// literal leads over a given value, and returns where to.
func (b *builder) literal(from int32, v *value) int32 {
	switch v.kind {
	case null:
		return b.text(from, "null")
	case boolean:
		if v.truth {
			return b.text(from, "true")
		}
		return b.text(from, "false")
	case number:
		return b.text(from, v.number())
	case text:
		return b.text(from, quoteJSON(v.str))
	}
	brackets := "[]"
	if v.kind == object {
		brackets = "{}"
	}
	at := b.text(from, brackets[:1])
	at = b.space(at)
	for i := range v.list {
		if i > 0 {
			at = b.comma(at)
		}
		if v.kind == object {
			at = b.colon(b.text(at, quoteJSON(v.keys[i])))
		}
		at = b.literal(at, &v.list[i])
	}
	if len(v.list) > 0 {
		at = b.space(at)
	}
	return b.text(at, brackets[1:])
}
