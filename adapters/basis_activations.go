package adapters

import (
	"errors"
	"math"
	"slices"

	"gonum.org/v1/gonum/floats"
	"gonum.org/v1/gonum/mat"
)

const (
	directionBlock = 64   // directions found together; fixed, so that rows do not depend on R
	directionSpare = 16   // further directions iterated with them, for their convergence
	maxIterations  = 12   // of one block
	settled        = 1e-3 // relative change of the kept variances that ends the iteration
	varianceFloor  = 1e-4 // of the mean variance: weaker directions are not blown up further
)

// whitenedRows are the top principal directions of cov [in, in], each divided by the standard deviation of its
// coordinate, and scaled together so that z = A·x has the inputs' mean variance: row i is vᵢ·√(tr(C)/in)/σᵢ.
// Directions are found block by block by subspace iteration, each block orthogonal to those before it.
func whitenedRows(seed uint64, layer int, site Site, r, in int, cov []float64) ([][]float64, error) {
	trace := 0.0
	for i := range in {
		trace += cov[i*in+i]
	}
	if err := checkMoments(cov); err != nil {
		return nil, err
	}
	mean := trace / float64(in)
	if !(mean > 0) {
		return nil, errors.New("the site's inputs are all zero")
	}
	c := mat.NewDense(in, in, cov)
	var found, rows [][]float64
	for len(found) < r {
		keep := min(directionBlock, in-len(found))
		vectors, variances := topDirections(c, found, keep, func(i int) *stream {
			return rowKey(Activations, seed, layer, site, len(found)+i)
		})
		found = append(found, vectors...)
		for i, v := range vectors {
			scale := math.Sqrt(mean / max(variances[i], varianceFloor*mean))
			row := make([]float64, in)
			floats.AddScaled(row, scale, v)
			rows = append(rows, row)
		}
	}
	return rows[:r], nil
}

func checkMoments(cov []float64) error {
	for _, v := range cov {
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return errors.New("the inputs' second moments are not finite")
		}
	}
	return nil
}

// topDirections gives the keep leading eigenvectors of c in the complement of found, and their eigenvalues,
// descending.
func topDirections(c *mat.Dense, found [][]float64, keep int, start func(int) *stream) ([][]float64, []float64) {
	in, _ := c.Dims()
	p := min(keep+directionSpare, in-len(found))
	q := mat.NewDense(p, in, nil)
	for i := range p {
		s := start(i)
		for j, row := 0, q.RawRowView(i); j < in; j++ {
			row[j] = s.bell()
		}
	}
	orthonormalise(q, found, start)
	var y, small, rotated mat.Dense
	var last []float64
	for iteration := 1; ; iteration++ {
		y.Mul(q, c)
		// Rayleigh-Ritz: the best directions within the span.
		small.Mul(&y, q.T())
		sym := mat.NewSymDense(p, nil)
		for i := range p {
			for j := i; j < p; j++ {
				sym.SetSym(i, j, (small.At(i, j)+small.At(j, i))/2)
			}
		}
		var eigen mat.EigenSym
		if !eigen.Factorize(sym, true) {
			panic("adapters: the symmetric eigenvalue problem of finite values did not converge")
		}
		values := eigen.Values(nil) // ascending
		change := 1.0
		if last != nil {
			change = 0
			for i := p - keep; i < p; i++ {
				change = max(change, math.Abs(values[i]-last[i])/max(math.Abs(values[p-1])*1e-9, math.Abs(values[i])))
			}
		}
		if last = values; p == in-len(found) || change < settled || iteration == maxIterations {
			var vectors mat.Dense
			eigen.VectorsTo(&vectors)
			rotated.Mul(vectors.T(), q)
			return leading(&rotated, keep), reversed(values[p-keep:])
		}
		q.Copy(&y)
		orthonormalise(q, found, start)
	}
}

// leading takes the last keep rows of m, which ascend, in descending order, each with a sign that depends on
// nothing but its direction: the largest element is positive.
func leading(m *mat.Dense, keep int) [][]float64 {
	p, _ := m.Dims()
	out := make([][]float64, keep)
	for i := range out {
		v := append([]float64(nil), m.RawRowView(p-1-i)...)
		big := 0
		for j := range v {
			if math.Abs(v[j]) > math.Abs(v[big]) {
				big = j
			}
		}
		if v[big] < 0 {
			floats.Scale(-1, v)
		}
		out[i] = v
	}
	return out
}

func reversed(v []float64) []float64 {
	out := append([]float64(nil), v...)
	slices.Reverse(out)
	return out
}

// orthonormalise makes q's rows orthonormal and orthogonal to found. A row that vanishes, as where c has fewer
// directions than are asked for, is replaced by a random one.
func orthonormalise(q *mat.Dense, found [][]float64, start func(int) *stream) {
	p, _ := q.Dims()
	for i := range p {
		v := q.RawRowView(i)
		for attempt := 0; ; attempt++ {
			before := floats.Norm(v, 2)
			for range 2 {
				for _, f := range found {
					floats.AddScaled(v, -floats.Dot(v, f), f)
				}
				for j := range i {
					u := q.RawRowView(j)
					floats.AddScaled(v, -floats.Dot(v, u), u)
				}
			}
			if norm := floats.Norm(v, 2); norm > 1e-12*before && norm > 1e-280 {
				floats.Scale(1/norm, v)
				break
			}
			s := start(1000 + i + p*attempt)
			for j := range v {
				v[j] = s.bell()
			}
		}
	}
}
