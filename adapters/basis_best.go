package adapters

import (
	"context"
	"fmt"
	"runtime"

	"golang.org/x/sync/errgroup"
	"gonum.org/v1/gonum/mat"
)

// BestBasis gives the rows onto which the adapters lose least by projection: for each layer and site the r leading eigenvectors of
//
//	Σ s²·A′ᵀ·B′ᵀ·B′·A′   [in, in], over all adapters' modules of the site,
//
// in descending order, so that the first rows are the best of their number too. Each adapter counts as much as any other, whatever its norm. A site
// that no adapter changes gets random orthonormal rows. All adapters have one geometry (ErrBaseMismatch); r as in BasisConfig (ErrRank).
func BestBasis(ctx context.Context, ps []*PEFT, r int, baseHash string) (*Basis, error) {
	if len(ps) == 0 {
		panic("adapters: the best basis of no adapters")
	}
	g := ps[0].Geometry
	if limit := g.maxRows(); r < 1 || r > limit {
		return nil, fmt.Errorf("finding the best basis: %w: R = %d is not in 1 … %d", ErrRank, r, limit)
	}
	sites := make([][]weighed, g.Layers*int(NumSites))
	for _, p := range ps {
		if p.Geometry != g {
			return nil, fmt.Errorf("finding the best basis: %w", ErrBaseMismatch)
		}
		total := 0.0
		for _, m := range p.Modules {
			total += m.norm()
		}
		if total == 0 {
			continue
		}
		for _, m := range p.Modules {
			i := m.Layer*int(NumSites) + int(m.Proj.Site())
			sites[i] = append(sites[i], weighed{m, m.Scaling * m.Scaling / total})
		}
	}
	b := emptyBasis(Import, 0, r, g, baseHash)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(runtime.GOMAXPROCS(0))
	for i, ms := range sites {
		group.Go(func() error {
			if err := ctx.Err(); err != nil {
				return fmt.Errorf("finding the best basis: %w", err)
			}
			layer, site := i/int(NumSites), Site(i%int(NumSites))
			b.rows[i] = roundRows(bestRows(ms, layer, site, r, g.In(site)), g.In(site))
			return nil
		})
	}
	return b, group.Wait()
}

type weighed struct {
	PEFTModule
	weight float64
}

func bestRows(ms []weighed, layer int, site Site, r, in int) [][]float64 {
	if len(ms) == 0 {
		return orthonormalRows(0, layer, site, r, in)
	}
	sum := mat.NewDense(in, in, nil)
	for _, m := range ms {
		var gram, ga, part mat.Dense
		a, b := wide(m.A, m.Rank, in), wide(m.B, len(m.B)/m.Rank, m.Rank)
		gram.Mul(b.T(), b)
		gram.Scale(m.weight, &gram)
		ga.Mul(&gram, a)
		part.Mul(a.T(), &ga)
		sum.Add(sum, &part)
	}
	var rows [][]float64
	for len(rows) < r {
		vectors, _ := topDirections(sum, rows, min(directionBlock, in-len(rows)), func(i int) *stream {
			return rowKey(Import, 0, layer, site, len(rows)+i)
		})
		rows = append(rows, vectors...)
	}
	return rows[:r]
}
