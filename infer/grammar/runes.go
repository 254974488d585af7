package grammar

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// runeDFA is a deterministic automaton over characters; state 0 is the start. A missing edge is a dead end. Surrogates are no characters.
type runeDFA struct {
	edges [][]runeEdge // [states], sorted, not overlapping
	final []bool
}

type runeEdge struct {
	lo, hi rune
	to     int32
}

// maxPatternStates bounds the automaton of a regular expression.
const maxPatternStates = 20_000

const (
	surrogateLo = 0xD800
	surrogateHi = 0xDFFF
)

// everything are edges on all characters.
func everything(to int32) []runeEdge {
	return []runeEdge{{0, surrogateLo - 1, to}, {surrogateHi + 1, utf8.MaxRune, to}}
}

// anyDFA is the automaton of all strings.
func anyDFA() *runeDFA { return &runeDFA{edges: [][]runeEdge{everything(0)}, final: []bool{true}} }

// textsDFA is the automaton of some texts.
func textsDFA(texts []string) *runeDFA {
	d := &runeDFA{edges: make([][]runeEdge, 1), final: make([]bool, 1)}
	for _, t := range texts {
		at := int32(0)
		for _, r := range t {
			i, found := slices.BinarySearchFunc(d.edges[at], r, func(e runeEdge, r rune) int { return int(e.lo - r) })
			if !found {
				to := int32(len(d.edges))
				d.edges, d.final = append(d.edges, nil), append(d.final, false)
				d.edges[at] = slices.Insert(d.edges[at], i, runeEdge{r, r, to})
			}
			at = d.edges[at][i].to
		}
		d.final[at] = true
	}
	return d
}

// step follows a character; −1: no way.
func (d *runeDFA) step(at int32, r rune) int32 {
	for _, e := range d.edges[at] {
		if r <= e.hi {
			if r >= e.lo {
				return e.to
			}
			break
		}
	}
	return -1
}

func (d *runeDFA) match(s string) bool {
	at := int32(0)
	for _, r := range s {
		if at = d.step(at, r); at < 0 {
			return false
		}
	}
	return d.final[at]
}

// complement is the automaton of all other strings.
func (d *runeDFA) complement() *runeDFA {
	sink := int32(len(d.edges))
	out := &runeDFA{}
	for _, edges := range append(slices.Clone(d.edges), nil) {
		var all []runeEdge
		for _, whole := range everything(sink) {
			at := whole.lo
			for _, e := range edges {
				if e.hi < at || e.lo > whole.hi {
					continue
				}
				if e.lo > at {
					all = append(all, runeEdge{at, e.lo - 1, sink})
				}
				all = append(all, e)
				at = e.hi + 1
			}
			if at <= whole.hi {
				all = append(all, runeEdge{at, whole.hi, sink})
			}
		}
		out.edges = append(out.edges, all)
	}
	for _, f := range d.final {
		out.final = append(out.final, !f)
	}
	out.final = append(out.final, true)
	return out
}

// and is the automaton of the strings of both.
func (d *runeDFA) and(o *runeDFA, w *work, at string) (*runeDFA, error) {
	type pair struct{ a, b int32 }
	ids := map[pair]int32{{0, 0}: 0}
	todo := []pair{{0, 0}}
	out := &runeDFA{}
	for n := 0; n < len(todo); n++ {
		if n > maxPatternStates {
			return nil, bad(at, "together with other patterns it needs more than %d states", maxPatternStates)
		}
		p := todo[n]
		var edges []runeEdge
		as, bs := d.edges[p.a], o.edges[p.b]
		if err := w.spend(len(as)+len(bs)+1, at); err != nil {
			return nil, err
		}
		for i, j := 0, 0; i < len(as) && j < len(bs); {
			lo, hi := max(as[i].lo, bs[j].lo), min(as[i].hi, bs[j].hi)
			if lo <= hi {
				q := pair{as[i].to, bs[j].to}
				id, ok := ids[q]
				if !ok {
					id = int32(len(todo))
					ids[q] = id
					todo = append(todo, q)
				}
				edges = append(edges, runeEdge{lo, hi, id})
			}
			if as[i].hi < bs[j].hi {
				i++
			} else {
				j++
			}
		}
		out.edges = append(out.edges, edges)
		out.final = append(out.final, d.final[p.a] && o.final[p.b])
	}
	return out.trim(w, at)
}

// sized is the automaton of the strings of so many characters; most −1: no limit.
func (d *runeDFA) sized(least, most int, w *work, at string) (*runeDFA, error) {
	n := most
	if most < 0 {
		n = least
	}
	if n > maxPatternStates {
		return nil, bad(at, "a length beside a pattern or format is supported up to %d", maxPatternStates)
	}
	sizes := &runeDFA{}
	for i := range n + 1 {
		switch {
		case i < n:
			sizes.edges = append(sizes.edges, everything(int32(i+1)))
		case most < 0:
			sizes.edges = append(sizes.edges, everything(int32(i)))
		default:
			sizes.edges = append(sizes.edges, nil)
		}
		sizes.final = append(sizes.final, i >= least)
	}
	return d.and(sizes, w, at)
}

// trim takes away what leads to no end, and states that are not reached.
func (d *runeDFA) trim(w *work, at string) (*runeDFA, error) {
	n := len(d.edges)
	if err := w.spend(4*n, at); err != nil {
		return nil, err
	}
	back := make([][]int32, n)
	for s, edges := range d.edges {
		for _, e := range edges {
			if b := back[e.to]; len(b) == 0 || b[len(b)-1] != int32(s) {
				back[e.to] = append(b, int32(s))
			}
		}
	}
	live := make([]bool, n)
	var todo []int32
	for s, f := range d.final {
		if f {
			live[s] = true
			todo = append(todo, int32(s))
		}
	}
	for len(todo) > 0 {
		s := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		for _, p := range back[s] {
			if !live[p] {
				live[p] = true
				todo = append(todo, p)
			}
		}
	}
	for s := range d.edges {
		d.edges[s] = slices.DeleteFunc(d.edges[s], func(e runeEdge) bool { return !live[e.to] })
	}
	return d.minimal(w, at)
}

// empty reports whether there is no string at all. The automaton must be trimmed.
func (d *runeDFA) empty() bool {
	return !d.final[0] && len(d.edges[0]) == 0
}

// minimal merges states that cannot be told apart, by refining a partition until it holds, and drops those that are not reached.
func (d *runeDFA) minimal(w *work, at string) (*runeDFA, error) {
	n := len(d.edges)
	if n > 300 { // large ones are left as they are: what this costs is quadratic
		return d, nil
	}
	size := 0
	for _, edges := range d.edges {
		size += 1 + len(edges)
	}
	group := make([]int32, n)
	groups := 0 // by no more than the first round finds
	for s, f := range d.final {
		if f {
			group[s] = 1
		}
	}
	for {
		if err := w.spend(8*size, at); err != nil {
			return nil, err
		}
		ids := map[string]int32{}
		next := make([]int32, n)
		for s := range n {
			var b strings.Builder
			fmt.Fprintf(&b, "%d", group[s])
			for i, e := range d.edges[s] { // neighbours with one target as one edge
				if i > 0 && d.edges[s][i-1].hi+1 == e.lo && group[d.edges[s][i-1].to] == group[e.to] {
					continue
				}
				hi := e.hi
				for j := i + 1; j < len(d.edges[s]) && d.edges[s][j].lo == hi+1 && group[d.edges[s][j].to] == group[e.to]; j++ {
					hi = d.edges[s][j].hi
				}
				fmt.Fprintf(&b, " %d-%d:%d", e.lo, hi, group[e.to])
			}
			id, ok := ids[b.String()]
			if !ok {
				id = int32(len(ids))
				ids[b.String()] = id
			}
			next[s] = id
		}
		group = next
		if len(ids) == groups {
			break
		}
		groups = len(ids)
	}
	out := &runeDFA{edges: make([][]runeEdge, groups), final: make([]bool, groups)}
	// The start's group must be the first.
	swap := group[0]
	name := func(g int32) int32 {
		switch g {
		case swap:
			return 0
		case 0:
			return swap
		}
		return g
	}
	for s := n - 1; s >= 0; s-- {
		g := name(group[s])
		out.final[g] = d.final[s]
		var edges []runeEdge
		for _, e := range d.edges[s] {
			to := name(group[e.to])
			if last := len(edges) - 1; last >= 0 && edges[last].hi+1 == e.lo && edges[last].to == to {
				edges[last].hi = e.hi
			} else {
				edges = append(edges, runeEdge{e.lo, e.hi, to})
			}
		}
		out.edges[g] = edges
	}
	return out, nil
}
