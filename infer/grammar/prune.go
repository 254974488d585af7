package grammar

import "slices"

// live finds the states that lead to an end, given which rules have a text.
func (r *rule) live(productive func(rule int32) bool) []bool {
	live := r.reach(productive, true)
	if r.mark == nil || r.min == 0 {
		return live
	}
	for s := range int(r.states) {
		for c := s * r.width; c < (s+1)*r.width; c++ {
			if to := r.next[c]; to >= 0 && live[s] && live[to] && r.mark[c] == count {
				return live
			}
		}
	}
	return r.reach(productive, false) // nothing can be counted, so what must be counted first is out of reach
}

// reach goes backwards from the final states.
func (r *rule) reach(productive func(rule int32) bool, enough bool) []bool {
	n := int(r.states)
	back := make([][]int32, n)
	for s := range n {
		for c := s * r.width; c < (s+1)*r.width; c++ {
			to := r.next[c]
			if to < 0 || !enough && r.mark[c] == done || len(back[to]) > 0 && back[to][len(back[to])-1] == int32(s) {
				continue
			}
			back[to] = append(back[to], int32(s))
		}
		if r.calls != nil {
			for _, c := range r.calls[s] {
				if productive(c.rule) {
					back[c.then] = append(back[c.then], int32(s))
				}
			}
		}
	}
	live := make([]bool, n)
	var todo []int32
	for s, f := range r.final {
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
	return live
}

// prune takes away edges that lead to no end.
func (r *rule) prune(productive func(rule int32) bool) {
	live := r.live(productive)
	none := true
	for s := range int(r.states) {
		for c := s * r.width; c < (s+1)*r.width; c++ {
			if to := r.next[c]; to >= 0 && !live[to] {
				r.next[c] = -1
			}
		}
		if r.calls != nil {
			r.calls[s] = slices.DeleteFunc(r.calls[s], func(c call) bool { return !live[c.then] || !productive(c.rule) })
			none = none && len(r.calls[s]) == 0
		}
	}
	if none {
		r.calls = nil
	}
}

// prune makes every state of every rule that the root needs lead to an end. It reports whether the root itself has a text.
func (g *Grammar) prune(w *work) (bool, error) {
	productive := make([]bool, len(g.rules))
	is := func(r int32) bool { return productive[r] }
	for changed := true; changed; {
		changed = false
		for i := len(g.rules) - 1; i >= 0; i-- { // mostly, what a rule calls comes behind it
			r := g.rules[i]
			if productive[i] || r.states == 0 {
				continue
			}
			if err := w.spend(8*int(r.states), ""); err != nil {
				return false, err
			}
			if r.live(is)[start] {
				productive[i], changed = true, true
			}
		}
	}
	for i, r := range g.rules {
		if productive[i] {
			r.prune(is)
		}
	}
	return productive[0], nil
}
