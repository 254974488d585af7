package grammar

import (
	"fmt"
	"math"
	"math/big"
	"slices"
	"strconv"
	"strings"
)

// schema is one schema of a document, its keywords read.
type schema struct {
	id int
	at string // JSON pointer

	never bool // the schema false; true is a schema without keywords
	kinds kinds
	enum  []value // of enum and const
	enums bool    // there is one

	ref                 string
	target              *schema // of ref, when it was followed
	allOf, anyOf, oneOf []*schema
	apart               bool // oneOf was found to be disjoint

	properties    []property
	patterns      []property // patternProperties
	additional    *schema
	names         *schema // propertyNames
	required      []string
	minProperties int
	maxProperties int // none: −1

	prefix   []*schema
	items    *schema
	minItems int
	maxItems int // none: −1

	minLength int
	maxLength int // none: −1
	pattern   *string
	format    string

	low, high bound
	multiple  *big.Rat
}

type property struct {
	name string
	*schema
}

// document is a schema with everything in it that can be referred to.
type document struct {
	value   *value
	id      string
	root    *schema
	read    map[string]*schema // by pointer
	count   int
	anchors map[string]string // to pointers
}

// refused are assertions that are not understood. Other words than these and those that read knows are annotations.
var refused = []string{"not", "if", "then", "else", "dependentRequired", "dependentSchemas", "dependencies", "contains", "minContains", "maxContains",
	"unevaluatedProperties", "unevaluatedItems", "$dynamicRef", "$recursiveRef", "additionalItems"}

func readDocument(v *value) (*document, error) {
	d := &document{value: v, read: map[string]*schema{}, anchors: map[string]string{}}
	d.findAnchors(v, "")
	if id := v.get("$id"); id != nil && id.kind == text {
		d.id = strings.TrimSuffix(id.str, "#")
	}
	var err error
	d.root, err = d.schema(v, "")
	return d, err
}

func (d *document) findAnchors(v *value, at string) {
	for i := range v.list {
		part := strconv.Itoa(i)
		if v.kind == object {
			part = escapePointer(v.keys[i])
			if a := &v.list[i]; v.keys[i] == "$anchor" && a.kind == text {
				d.anchors[a.str] = at
			}
		}
		d.findAnchors(&v.list[i], at+"/"+part)
	}
}

// resolve finds what a $ref means.
func (d *document) resolve(s *schema) (*schema, error) {
	if s.target != nil {
		return s.target, nil
	}
	at := s.at + "/$ref"
	base, fragment, _ := strings.Cut(s.ref, "#")
	if base != "" && base != d.id {
		return nil, bad(at, "%q is not within this schema, and nothing is fetched", s.ref)
	}
	pointer := fragment
	if fragment != "" && fragment[0] != '/' {
		p, ok := d.anchors[fragment]
		if !ok {
			return nil, bad(at, "there is no anchor %q", fragment)
		}
		pointer = p
	}
	v, where := d.value, ""
	if pointer != "" {
		for part := range strings.SplitSeq(pointer[1:], "/") {
			if p, err := unescapePercent(part); err == nil {
				part = p
			}
			part = strings.ReplaceAll(strings.ReplaceAll(part, "~1", "/"), "~0", "~")
			var next *value
			if i, err := strconv.Atoi(part); v.kind == array && err == nil && i >= 0 && i < len(v.list) {
				next, part = &v.list[i], strconv.Itoa(i) // 00 is another name of the same place
			} else if v.kind == object {
				next = v.get(part)
			}
			if next == nil {
				return nil, bad(at, "%q leads nowhere", s.ref)
			}
			v, where = next, where+"/"+escapePointer(part)
		}
	}
	var err error
	s.target, err = d.schema(v, where)
	return s.target, err
}

func unescapePercent(s string) (string, error) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '%' {
			b.WriteByte(s[i])
			continue
		}
		if i+3 > len(s) {
			return "", strconv.ErrSyntax
		}
		n, err := strconv.ParseUint(s[i+1:i+3], 16, 8)
		if err != nil {
			return "", err
		}
		b.WriteByte(byte(n))
		i += 2
	}
	return b.String(), nil
}

// schema reads the schema at a pointer, once.
func (d *document) schema(v *value, at string) (*schema, error) {
	if s, ok := d.read[at]; ok {
		return s, nil
	}
	s := &schema{id: d.count, at: at, kinds: anyKind, maxProperties: -1, maxItems: -1, maxLength: -1}
	d.count++
	d.read[at] = s
	switch v.kind {
	case boolean:
		s.never = !v.truth
		return s, nil
	case object:
	default:
		return nil, bad(at, "a schema must be an object or a boolean")
	}
	for i, key := range v.keys {
		if err := d.keyword(s, key, &v.list[i], at+"/"+escapePointer(key)); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// keyword reads one keyword of a schema.
func (d *document) keyword(s *schema, key string, v *value, at string) (err error) {
	switch key {
	case "type":
		s.kinds, err = readTypes(v, at)
	case "enum":
		if v.kind != array {
			return bad(at, "must be an array")
		}
		return s.values(v.list)
	case "const":
		return s.values([]value{*v})
	case "$ref":
		s.ref, err = v.text(at)
	case "$id":
		if s.at != "" {
			return bad(at, "is supported at the root only")
		}
	case "allOf":
		s.allOf, err = d.list(v, at)
	case "anyOf":
		s.anyOf, err = d.list(v, at)
	case "oneOf":
		s.oneOf, err = d.list(v, at)
	case "properties":
		s.properties, err = d.properties(v, at)
	case "patternProperties":
		s.patterns, err = d.properties(v, at)
	case "additionalProperties":
		s.additional, err = d.schema(v, at)
	case "propertyNames":
		s.names, err = d.schema(v, at)
	case "required":
		if v.kind != array {
			return bad(at, "must be an array of strings")
		}
		for i := range v.list {
			name, err := v.list[i].text(fmt.Sprintf("%s/%d", at, i))
			if err != nil {
				return err
			}
			s.required = append(s.required, name)
		}
	case "minProperties":
		s.minProperties, err = v.size(at)
	case "maxProperties":
		s.maxProperties, err = v.size(at)
	case "prefixItems":
		s.prefix, err = d.list(v, at)
	case "items":
		if v.kind == array {
			return bad(at, "an array of schemas is written prefixItems since draft 2020-12")
		}
		s.items, err = d.schema(v, at)
	case "minItems":
		s.minItems, err = v.size(at)
	case "maxItems":
		s.maxItems, err = v.size(at)
	case "uniqueItems":
		if v.kind != boolean {
			return bad(at, "must be a boolean")
		}
		if v.truth {
			return bad(at, "is not supported")
		}
	case "minLength":
		s.minLength, err = v.size(at)
	case "maxLength":
		s.maxLength, err = v.size(at)
	case "pattern":
		var p string
		p, err = v.text(at)
		s.pattern = &p
	case "format":
		s.format, err = v.text(at)
	case "minimum":
		return s.low.tighten(v, false, 1, at)
	case "exclusiveMinimum":
		return s.low.tighten(v, true, 1, at)
	case "maximum":
		return s.high.tighten(v, false, -1, at)
	case "exclusiveMaximum":
		return s.high.tighten(v, true, -1, at)
	case "multipleOf":
		if v.kind != number || v.rat.Sign() <= 0 {
			return bad(at, "must be a number above 0")
		}
		s.multiple = v.rat
	default:
		if slices.Contains(refused, key) {
			return bad(at, "is not supported")
		}
	}
	return err
}

func (s *schema) values(list []value) error {
	if s.enums { // enum and const
		steps := 0
		list = slices.DeleteFunc(slices.Clone(list), func(v value) bool { return !v.among(s.enum, &steps) })
	}
	s.enum, s.enums = list, true
	return nil
}

func readTypes(v *value, at string) (kinds, error) {
	list := []value{*v}
	if v.kind == array {
		list = v.list
	}
	var out kinds
	whole, all := false, false
	for i := range list {
		name, err := list[i].text(at)
		if err != nil {
			return 0, err
		}
		switch name {
		case "null":
			out |= kinds(null)
		case "boolean":
			out |= kinds(boolean)
		case "string":
			out |= kinds(text)
		case "array":
			out |= kinds(array)
		case "object":
			out |= kinds(object)
		case "integer":
			whole = true
		case "number":
			all = true
		default:
			return 0, bad(at, "unknown type %.40q", name)
		}
	}
	if whole || all {
		out |= kinds(number)
	}
	if whole && !all {
		out |= kinds(integral)
	}
	return out, nil
}

// and is what both sets of types have.
func (k kinds) and(o kinds) kinds {
	both := k & o &^ kinds(integral)
	if both&kinds(number) != 0 {
		both |= (k | o) & kinds(integral)
	}
	return both
}

func (d *document) list(v *value, at string) ([]*schema, error) {
	if v.kind != array || len(v.list) == 0 {
		return nil, bad(at, "must be an array of schemas, and not empty")
	}
	var out []*schema
	for i := range v.list {
		s, err := d.schema(&v.list[i], fmt.Sprintf("%s/%d", at, i))
		if err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	return out, nil
}

func (d *document) properties(v *value, at string) ([]property, error) {
	if v.kind != object {
		return nil, bad(at, "must be an object of schemas")
	}
	var out []property
	for i, name := range v.keys {
		s, err := d.schema(&v.list[i], at+"/"+escapePointer(name))
		if err != nil {
			return nil, err
		}
		out = append(out, property{name, s})
	}
	return out, nil
}

func (v *value) text(at string) (string, error) {
	if v.kind != text {
		return "", bad(at, "must be a string")
	}
	return v.str, nil
}

// size reads a count.
func (v *value) size(at string) (int, error) {
	if v.kind != number || !v.rat.IsInt() || v.rat.Sign() < 0 {
		return 0, bad(at, "must be an integer of at least 0")
	}
	if n := v.rat.Num(); n.IsInt64() && n.Int64() <= math.MaxInt32/64 {
		return int(n.Int64()), nil
	}
	return 0, bad(at, "must be at most %d", math.MaxInt32/64)
}
