//go:build cuda

package cuda

import (
	"fmt"

	"bhive/kernels"
)

const (
	normBlocks = 256  // of a lane's gradient norm
	adamRun    = 4096 // elements of a block of AdamW, about
	adamSites  = 32   // of a launch
)

// GradNorm: norms[l] = Σ g² over lane l's gradient, in a fixed order; 0 for lanes that are not set.
func (b *Backend) GradNorm(s kernels.Stream, norms kernels.Tensor, lanes kernels.LaneTable) {
	t, own := lanes.(*laneTable), s.(*stream)
	to := vector(norms, t.lanes, "gradient norm: norms")
	args := []uint64{uint64(t.at), own.grow(&own.norms, int64(8*normBlocks*t.lanes)), to, uint64(t.lanes), normBlocks}
	b.launch(s, "grad_squares", normBlocks, t.lanes, 1, 256, 0, args...)
	b.launch(s, "grad_norm", t.lanes, 1, 1, 32, 0, args...)
}

// AdamW updates one lane's B as [kernels.AdamWArgs] says.
func (b *Backend) AdamW(s kernels.Stream, a kernels.AdamWArgs) {
	n, rows, dt := a.Master.Cols, 0, b.config.Working
	for _, site := range a.Sites {
		rows += site.Rows
	}
	if n != rows*a.Rank || a.Working.Cols != n || a.Working.DType != dt || a.M.Cols != n || a.V.Cols != n || a.Grad.Cols != n || a.Norms.Cols <= a.Lane {
		panic(fmt.Sprintf("cuda: adamw: a block of %d over %d rows of rank %d", n, rows, a.Rank))
	}
	at := [...]uint64{vector(a.Master, n, "adamw: master"), vector(a.M, n, "adamw: m"), vector(a.V, n, "adamw: v"), vector(a.Grad, n, "adamw: gradient"), address(a.Working)}
	correction, _ := optional(a.Correction, kernels.F32, len(a.Sites)*a.Rank, a.Rank, "adamw: correction")
	if correction != 0 && !a.Correction.Contiguous() {
		panic("cuda: adamw: a correction with gaps")
	}
	norm, hyper := vector(a.Norms, a.Lane+1, "adamw: norms")+uint64(4*a.Lane), vector(a.Hyper, kernels.HyperWords, "adamw: hyper")
	each, shared, sites := max(1, adamRun/a.Rank), 0, a.Sites
	if correction == 0 {
		sites = []kernels.SiteRows{{Rows: rows}}
	} else {
		shared = 4 * each * a.Rank
	}
	for first, row := 0, 0; first < len(sites); first += adamSites {
		group, longest := sites[first:min(first+adamSites, len(sites))], 0
		var starts [adamSites + 1]uint64
		for i, site := range group {
			starts[i] = uint64(row)
			row += site.Rows
			longest = max(longest, site.Rows)
		}
		starts[len(group)] = uint64(row)
		c := correction
		if c != 0 {
			c += uint64(4 * first * a.Rank * a.Rank)
		}
		args := append([]uint64{at[0], at[1], at[2], at[3], at[4], uint64(a.Rank), uint64(each), c, norm, hyper}, starts[:]...)
		b.launch(s, "adamw"+b.suffix(), parts(longest, each), len(group), 1, 256, shared, args...)
	}
}
