package cpu

import (
	"math"
	"slices"

	"bhive/kernels"
	"bhive/kernels/cpu/simd"
)

// race draws from a distribution: the token with the greatest x + gumbel(seed, draw, token) wins.
type race struct {
	seed uint64
	draw uint32
}

// run draws a token from logits x, already divided by the temperature, after min-p, top-k (0: all) and top-p (1: all).
func (d race) run(k *simd.Kernels, s *scratch, x []float32, minP float32, topK int, topP float32) int32 {
	first := k.ArgMax(x)
	top := x[first]
	if !(top > negInf) {
		return int32(first) // nothing is allowed
	}
	least := negInf
	if minP > 0 {
		least = top + float32(math.Log(float64(minP)))
	}
	ids := grown(&s.ids, len(x))
	limited := topK > 0 && topK < len(x)
	switch {
	case limited:
		kept := greatest(x, least, topK, ids)
		return d.among(x, nucleus(x, kept, top, topP, mass(x, kept, top)))
	case topP < 1:
		total := 0.0
		for _, v := range x {
			if v >= least {
				total += math.Exp(float64(v - top))
			}
		}
		for n := 64; ; n *= 8 {
			kept := greatest(x, least, n, ids)
			if p := nucleus(x, kept, top, topP, total); len(p) < len(kept) || len(kept) < n {
				return d.among(x, p)
			}
		}
	default:
		return d.all(x, first, least)
	}
}

// mass is Σ exp(x − top) over ids.
func mass(x []float32, ids []int32, top float32) float64 {
	total := 0.0
	for _, id := range ids {
		total += math.Exp(float64(x[id] - top))
	}
	return total
}

// nucleus is the shortest prefix of ids, which descend in x, that holds the share p of total.
func nucleus(x []float32, ids []int32, top, p float32, total float64) []int32 {
	if p >= 1 {
		return ids
	}
	sum := 0.0
	for n, id := range ids {
		sum += math.Exp(float64(x[id] - top))
		if sum >= float64(p)*total {
			return ids[:n+1]
		}
	}
	return ids
}

// among runs the race between a few tokens. Ties go to the lower id, in any order of ids.
func (d race) among(x []float32, ids []int32) int32 {
	best, at := negInf, ids[0]
	for _, id := range ids {
		if v := x[id] + kernels.Gumbel(d.seed, d.draw, uint32(id)); v > best || v == best && id < at {
			best, at = v, id
		}
	}
	return at
}

// mostGumbel exceeds every value of kernels.Gumbel: u ≤ 1 − 2⁻²⁴.
const mostGumbel = 16.7

// all runs the race between all tokens of at least the given logit. Tokens that cannot win are passed over without noise:
// as −log u ≥ 1 − u, a token's noise is at most −log(1 − u).
func (d race) all(x []float32, first int, least float32) int32 {
	at := int32(first)
	best := x[first] + kernels.Gumbel(d.seed, d.draw, uint32(first))
	// A token is looked at if 1 − u ≤ e^(x − best): far is where no u can reach.
	far := max(least, best-mostGumbel)
	for g := 0; g < len(x); g += 4 {
		group := x[g:min(g+4, len(x))]
		if slices.Max(group) < far {
			continue
		}
		u := kernels.Uniform4(d.seed, d.draw, uint32(g/4))
		for j, v := range group {
			id := int32(g + j)
			if v < far || v < best+float32(math.Log(float64(1-u[j])))-1e-3 {
				continue
			}
			n := v + float32(-math.Log(-math.Log(float64(u[j]))))
			if n > best || n == best && id < at {
				best, at = n, id
				far = max(least, best-mostGumbel)
			}
		}
	}
	return at
}

// greatest writes the ids of the n greatest x ≥ least (and above −Inf) to dst, which has room for all of x, in descending
// order; ties in order of id.
func greatest(x []float32, least float32, n int, dst []int32) []int32 {
	if n <= 0 {
		return dst[:0]
	}
	before := func(a, b int32) bool { return x[a] > x[b] || x[a] == x[b] && a < b }
	order := func(a, b int32) int {
		switch {
		case before(a, b):
			return -1
		case before(b, a):
			return 1
		}
		return 0
	}
	if n >= len(x)/8 { // a heap would be no better
		h := dst[:0]
		for i, v := range x {
			if v >= least && v > negInf {
				h = append(h, int32(i))
			}
		}
		slices.SortFunc(h, order)
		return h[:min(n, len(h))]
	}
	h := dst[:0] // a heap with the last in order at its root
	sift := func(i int) {
		for {
			c := 2*i + 1
			if c >= len(h) {
				return
			}
			if c+1 < len(h) && before(h[c], h[c+1]) {
				c++
			}
			if before(h[c], h[i]) {
				return
			}
			h[i], h[c] = h[c], h[i]
			i = c
		}
	}
	for i, v := range x {
		if !(v >= least && v > negInf) {
			continue
		}
		if len(h) < n {
			h = append(h, int32(i))
			if len(h) == n {
				for j := n/2 - 1; j >= 0; j-- {
					sift(j)
				}
				least = max(least, x[h[0]])
			}
			continue
		}
		if before(int32(i), h[0]) {
			h[0] = int32(i)
			sift(0)
			least = x[h[0]]
		}
	}
	slices.SortFunc(h, order)
	return h
}
