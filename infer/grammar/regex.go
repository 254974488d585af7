package grammar

import (
	"encoding/binary"
	"regexp/syntax"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxPattern is the longest regular expression, in bytes.
const maxPattern = 4096

// compilePattern makes an automaton of a regular expression: of the strings that match as a whole, or of those that have a match in
// them. The expressions are what ECMA 262 and RE2 both have: no look-around, no back-references.
func compilePattern(pattern string, whole bool, w *work, at string) (*runeDFA, error) {
	if len(pattern) > maxPattern {
		return nil, bad(at, "the expression has %d bytes, at most %d are supported", len(pattern), maxPattern)
	}
	translated, err := translate(pattern, at)
	if err != nil {
		return nil, err
	}
	re, err := syntax.Parse(translated, syntax.Perl)
	if err != nil {
		return nil, bad(at, "the expression %.100q is not supported: %s", pattern, err)
	}
	if !whole {
		any := &syntax.Regexp{Op: syntax.OpStar, Sub: []*syntax.Regexp{{Op: syntax.OpAnyChar}}}
		re = &syntax.Regexp{Op: syntax.OpConcat, Sub: []*syntax.Regexp{any, re, any}}
	}
	prog, err := syntax.Compile(re.Simplify())
	if err != nil {
		return nil, bad(at, "the expression %.100q is not supported: %s", pattern, err)
	}
	d := subsets{prog: prog, ids: map[string]int32{}}
	if err := d.split(w, at); err != nil {
		return nil, err
	}
	out, err := d.automaton(w, at)
	if err != nil {
		return nil, err
	}
	return out.trim(w, at)
}

// translate writes an ECMA 262 expression as RE2 has it, and refuses what means something else there.
func translate(p, at string) (string, error) {
	const space = `\t\n\x0b\f\r \x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}\x{feff}`
	var b strings.Builder
	inClass := false
	for i := 0; i < len(p); i++ {
		c := p[i]
		switch {
		case c == '\\' && i+1 < len(p):
			i++
			switch e := p[i]; e {
			case 's':
				if inClass {
					b.WriteString(space)
				} else {
					b.WriteString("[" + space + "]")
				}
			case 'S':
				if inClass {
					return "", bad(at, `\S within brackets is not supported`)
				}
				b.WriteString("[^" + space + "]")
			case 'u':
				hex := ""
				if rest := p[i+1:]; len(rest) > 0 && rest[0] == '{' {
					if n := strings.IndexByte(rest, '}'); n > 1 {
						hex = rest[1:n]
						i += n + 1
					}
				} else if len(rest) >= 4 {
					hex = rest[:4]
					i += 4
				}
				if hex == "" || strings.Trim(hex, "0123456789abcdefABCDEF") != "" {
					return "", bad(at, `\u needs four hexadecimal digits`)
				}
				b.WriteString(`\x{` + hex + `}`)
			case 'c':
				if i++; i >= len(p) || !('a' <= p[i]|0x20 && p[i]|0x20 <= 'z') {
					return "", bad(at, `\c needs a letter`)
				}
				b.WriteString(`\x{` + string("0123456789abcdef"[p[i]>>4&1]) + string("0123456789abcdef"[p[i]&15]) + `}`)
			case '0':
				if i+1 < len(p) && '0' <= p[i+1] && p[i+1] <= '9' {
					return "", bad(at, "octal escapes are not supported")
				}
				b.WriteString(`\x{0}`)
			case 'b':
				if inClass {
					b.WriteString(`\x{8}`)
				} else {
					b.WriteString(`\b`)
				}
			case 'A', 'z', 'Z', 'Q', 'E', 'C', 'a', 'G', 'K', 'R', 'X':
				return "", bad(at, `\%c is not supported`, e)
			case 'p', 'P':
				b.WriteString(`\` + string(e))
				if rest := p[i+1:]; strings.HasPrefix(rest, "{") {
					if n := strings.IndexByte(rest, '}'); n > 0 {
						b.WriteString("{" + category(rest[1:n]) + "}")
						i += n + 1
					}
				}
			default:
				b.WriteByte('\\')
				_, n := utf8.DecodeRuneInString(p[i:])
				b.WriteString(p[i : i+n])
				i += n - 1
			}
		case inClass:
			switch c {
			case ']':
				inClass = false
			case '[': // RE2 would see a [:class:]
				b.WriteByte('\\')
			}
			b.WriteByte(c)
		case c == '[':
			inClass = true
			switch {
			case strings.HasPrefix(p[i:], "[^]"):
				b.WriteString(`[\x{0}-\x{10ffff}]`)
				i, inClass = i+2, false
			case strings.HasPrefix(p[i:], "[]"):
				return "", bad(at, "[] matches nothing")
			case strings.HasPrefix(p[i:], "[^"):
				b.WriteString("[^")
				i++
			default:
				b.WriteByte('[')
			}
		case c == '.':
			b.WriteString(`[^\n\r\x{2028}\x{2029}]`)
		default:
			b.WriteByte(c)
		}
	}
	return b.String(), nil
}

// category is RE2's name of a Unicode property.
func category(p string) string {
	if _, v, ok := strings.Cut(p, "="); ok {
		p = v
	}
	if short, ok := unicode.CategoryAliases[p]; ok {
		return short
	}
	return p
}

// subsets makes a deterministic automaton of a compiled expression.
type subsets struct {
	prog    *syntax.Prog
	lo      []rune // the first character of each piece of the alphabet; pieces run up to the next one
	classes []int  // of each piece
	samples []rune // a character of each class
	ids     map[string]int32
	sets    []subset

	seen  []int // for closure: the number of the last that met an instruction
	turn  int
	todo  []uint32
	steps int
}

// subset is where an expression may stand, before anything that is empty is looked at.
type subset struct {
	pcs  []uint32
	last rune // a character like the one before: −1 at the beginning, a word's, a line break, or another
}

func isWord(r rune) bool { return syntax.IsWordChar(r) }

// split finds the pieces of the alphabet that the expression tells apart.
func (d *subsets) split(w *work, at string) error {
	cut := map[rune]bool{0: true, surrogateLo: true, surrogateHi + 1: true}
	piece := func(lo, hi rune) { cut[lo], cut[hi+1] = true, true }
	for i := range d.prog.Inst {
		in := &d.prog.Inst[i]
		switch in.Op {
		case syntax.InstRune, syntax.InstRune1:
			if len(in.Rune) == 1 {
				for r := in.Rune[0]; ; {
					piece(r, r)
					if r = unicode.SimpleFold(r); r == in.Rune[0] {
						break
					}
				}
			}
			for j := 0; j+1 < len(in.Rune); j += 2 {
				piece(in.Rune[j], in.Rune[j+1])
			}
		case syntax.InstRuneAnyNotNL:
			piece('\n', '\n')
		case syntax.InstEmptyWidth:
			piece('\n', '\n')
			piece('0', '9')
			piece('A', 'Z')
			piece('_', '_')
			piece('a', 'z')
		}
	}
	for r := range cut {
		if r <= utf8.MaxRune {
			d.lo = append(d.lo, r)
		}
	}
	slices.Sort(d.lo)
	if err := w.spend(len(d.lo)*len(d.prog.Inst)/8, at); err != nil {
		return err
	}
	known := map[string]int{}
	for _, r := range d.lo {
		if r >= surrogateLo && r <= surrogateHi {
			d.classes = append(d.classes, -1)
			continue
		}
		key := make([]byte, 0, len(d.prog.Inst)+2)
		for i := range d.prog.Inst {
			in := &d.prog.Inst[i]
			if in.Op >= syntax.InstRune && in.MatchRune(r) {
				key = append(key, 1)
			} else {
				key = append(key, 0)
			}
		}
		key = append(key, byte(neighbour(r)))
		c, ok := known[string(key)]
		if !ok {
			c = len(d.samples)
			known[string(key)] = c
			d.samples = append(d.samples, r)
		}
		d.classes = append(d.classes, c)
	}
	return nil
}

// neighbour is a character that stands for all that are alike to \b, ^ and $.
func neighbour(r rune) rune {
	switch {
	case isWord(r):
		return 'a'
	case r == '\n':
		return '\n'
	}
	return ' '
}

// closure follows what is empty; match tells that the expression's end is among it.
func (d *subsets) closure(pcs []uint32, flags syntax.EmptyOp) (out []uint32, match bool) {
	if d.seen == nil {
		d.seen = make([]int, len(d.prog.Inst))
	}
	d.turn++
	todo := append(d.todo[:0], pcs...)
	for len(todo) > 0 {
		pc := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		d.steps++
		if d.seen[pc] == d.turn {
			continue
		}
		d.seen[pc] = d.turn
		switch in := &d.prog.Inst[pc]; in.Op {
		case syntax.InstAlt, syntax.InstAltMatch:
			todo = append(todo, in.Out, in.Arg)
		case syntax.InstCapture, syntax.InstNop:
			todo = append(todo, in.Out)
		case syntax.InstEmptyWidth:
			if syntax.EmptyOp(in.Arg)&^flags == 0 {
				todo = append(todo, in.Out)
			}
		case syntax.InstMatch:
			match = true
		case syntax.InstFail:
		default:
			out = append(out, pc)
		}
	}
	d.todo = todo
	return out, match
}

func (d *subsets) id(s subset) int32 {
	slices.Sort(s.pcs)
	s.pcs = slices.Compact(s.pcs)
	key := make([]byte, 0, 4*len(s.pcs)+4)
	for _, pc := range s.pcs {
		key = binary.LittleEndian.AppendUint32(key, pc)
	}
	key = binary.LittleEndian.AppendUint32(key, uint32(s.last))
	id, ok := d.ids[string(key)]
	if !ok {
		id = int32(len(d.sets))
		d.ids[string(key)] = id
		d.sets = append(d.sets, s)
	}
	return id
}

func (d *subsets) automaton(w *work, at string) (*runeDFA, error) {
	width := false // ^, $ or \b
	for i := range d.prog.Inst {
		width = width || d.prog.Inst[i].Op == syntax.InstEmptyWidth
	}
	last := rune(-1)
	if !width {
		last = ' '
	}
	d.id(subset{[]uint32{uint32(d.prog.Start)}, last})
	out := &runeDFA{}
	for n := 0; n < len(d.sets); n++ {
		s := d.sets[n]
		if n > maxPatternStates {
			return nil, bad(at, "the expression needs more than %d states", maxPatternStates)
		}
		d.steps += len(d.lo)
		if err := w.spend(d.steps, at); err != nil {
			return nil, err
		}
		d.steps = 0
		_, final := d.closure(s.pcs, syntax.EmptyOpContext(s.last, -1))
		targets := make([]int32, len(d.samples))
		for c, r := range d.samples {
			pcs, _ := d.closure(s.pcs, syntax.EmptyOpContext(s.last, r))
			next := subset{last: ' '}
			if width {
				next.last = neighbour(r)
			}
			for _, pc := range pcs {
				if in := &d.prog.Inst[pc]; in.MatchRune(r) {
					next.pcs = append(next.pcs, in.Out)
				}
			}
			targets[c] = -1
			if len(next.pcs) > 0 {
				targets[c] = d.id(next)
			}
		}
		var edges []runeEdge
		for i, lo := range d.lo {
			hi := rune(utf8.MaxRune)
			if i+1 < len(d.lo) {
				hi = d.lo[i+1] - 1
			}
			if d.classes[i] < 0 || targets[d.classes[i]] < 0 {
				continue
			}
			to := targets[d.classes[i]]
			if n := len(edges) - 1; n >= 0 && edges[n].hi+1 == lo && edges[n].to == to {
				edges[n].hi = hi
			} else {
				edges = append(edges, runeEdge{lo, hi, to})
			}
		}
		out.edges = append(out.edges, edges)
		out.final = append(out.final, final)
	}
	return out, nil
}
