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
	if !(top > negInf) || top > math.MaxFloat32 {
		return int32(first) // nothing is allowed, or nothing has a chance beside it
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
		least, last := d.cut(k, s, x, top, least, topP)
		return d.all(k, s, x, first, least, last)
	default:
		return d.all(k, s, x, first, least, math.MaxInt32)
	}
}

// Bins of the search for top-p's cut: binsPerUnit to a unit of logit/temperature; the last takes the rest.
const (
	cutBins     = 256
	binsPerUnit = 16
)

// cut finds the last token that top-p keeps of those of at least the given logit: its logit, and its id, which tells it from
// equal ones. Only the tokens of the bin that the share p ends in are sorted.
func (d race) cut(k *simd.Kernels, s *scratch, x []float32, top, least, p float32) (float32, int32) {
	odds := grown(&s.b, len(x))
	copy(odds, x)
	k.SoftmaxExp(odds, top)
	var mass [cutBins + 1]float64
	bin := func(v float32) int { return int(min(cutBins, (top-v)*binsPerUnit)) }
	total := 0.0
	for i, v := range x {
		if v >= least && odds[i] > 0 {
			mass[bin(v)] += float64(odds[i])
		}
	}
	for _, m := range mass {
		total += m
	}
	at, sum, want := 0, 0.0, float64(p)*total
	for at < cutBins && sum+mass[at] < want {
		sum += mass[at]
		at++
	}
	h := s.ids[:0]
	for i, v := range x {
		if v >= least && odds[i] > 0 && bin(v) == at {
			h = append(h, int32(i))
		}
	}
	slices.SortFunc(h, func(a, b int32) int {
		switch {
		case x[a] > x[b]:
			return -1
		case x[a] < x[b]:
			return 1
		}
		return int(a - b)
	})
	for i, id := range h {
		if sum += float64(odds[id]); sum >= want || i == len(h)-1 {
			return x[id], id
		}
	}
	return least, math.MaxInt32
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

// all runs the race between all tokens of at least the given logit, those that equal it up to
// the id last. Tokens that cannot win are passed over without noise or
// logarithms: as −log u ≥ 1 − u, a token can only beat best if 1 − u ≤ e^(x − best).
func (d race) all(k *simd.Kernels, s *scratch, x []float32, first int, least float32, last int32) int32 {
	at := int32(first)
	start := x[first] + kernels.Gumbel(d.seed, d.draw, uint32(first))
	best := start
	odds := grown(&s.b, len(x)) // e^(x − start), with some room for rounding
	copy(odds, x)
	k.SoftmaxExp(odds, start-1e-3)
	const leastMiss = 0.4 / (1 << 23) // below every 1 − u
	gain := float32(1)                // e^(start − best)
	for g := 0; g < len(x); g += 4 {
		group := odds[g:min(g+4, len(x))]
		likely := group[0]
		for _, o := range group[1:] {
			likely = max(likely, o)
		}
		if likely*gain < leastMiss {
			continue
		}
		u := kernels.Uniform4(d.seed, d.draw, uint32(g/4))
		for j, o := range group {
			id := int32(g + j)
			if o*gain < 1-u[j] || x[id] < least || x[id] == least && id > last {
				continue
			}
			n := x[id] + float32(-math.Log(-math.Log(float64(u[j]))))
			if n > best || n == best && id < at {
				best, at = n, id
				gain = float32(math.Exp(float64(start - best)))
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
