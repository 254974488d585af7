package cpu

import (
	"fmt"

	"bhive/kernels"
)

// adapterTable holds each adapter slot's block of B's.
type adapterTable struct {
	entries []adapterEntry
}

type adapterEntry struct {
	block working
	rank  int // 0: empty
}

func (t *adapterTable) Slots() int { return len(t.entries) }

// NewAdapterTable makes an empty table.
func (b *Backend) NewAdapterTable(slots int) (kernels.AdapterTable, error) {
	return &adapterTable{make([]adapterEntry, slots)}, nil
}

// FreeAdapterTable drops a table's entries; using it again panics.
func (b *Backend) FreeAdapterTable(t kernels.AdapterTable) { t.(*adapterTable).entries = nil }

// SetAdapter writes or empties an entry.
func (b *Backend) SetAdapter(s kernels.Stream, t kernels.AdapterTable, slot int, block kernels.Tensor, rank int) {
	e := adapterEntry{}
	if block.Present() {
		if rank <= 0 || block.Rows != 1 || block.Cols%rank != 0 {
			panic(fmt.Sprintf("cpu: an adapter of rank %d in a block [%d, %d]", rank, block.Rows, block.Cols))
		}
		e = adapterEntry{b.workingOf(block, "adapter block"), rank}
	}
	table := t.(*adapterTable)
	if g := recording(s); g != nil {
		g.add(func() { table.entries[slot] = e })
		return
	}
	table.entries[slot] = e
}

// laneTable holds each training lane's block of gradients.
type laneTable struct {
	lanes []lane
}

type lane struct {
	grad    []float32 // empty: not set
	rank    int
	scaling float32
}

func (t *laneTable) Lanes() int { return len(t.lanes) }

// NewLaneTable makes an empty table.
func (b *Backend) NewLaneTable(lanes int) (kernels.LaneTable, error) {
	return &laneTable{make([]lane, lanes)}, nil
}

// FreeLaneTable drops a table's entries; using it again panics.
func (b *Backend) FreeLaneTable(t kernels.LaneTable) { t.(*laneTable).lanes = nil }

// SetLane writes or empties an entry.
func (b *Backend) SetLane(s kernels.Stream, t kernels.LaneTable, at int, grad kernels.Tensor, rank int, scaling float32) {
	l := lane{}
	if grad.Present() {
		if rank <= 0 || grad.Rows != 1 || grad.Cols%rank != 0 {
			panic(fmt.Sprintf("cpu: a lane of rank %d in a block [%d, %d]", rank, grad.Rows, grad.Cols))
		}
		l = lane{vector(grad, grad.Cols, "lane gradient"), rank, scaling}
	}
	table := t.(*laneTable)
	if g := recording(s); g != nil {
		g.add(func() { table.lanes[at] = l })
		return
	}
	table.lanes[at] = l
}

// expand adds B·z to y for tokens [t0, t1): y has n columns, which are rows [n0, n0+n) of the site's B; z has R.
func (b *Backend) expand(y, z mat, ref kernels.BRef, r *kernels.Record, t0, t1, n0, n int) {
	if ref.Table == nil {
		return
	}
	table := ref.Table.(*adapterTable)
	for s := segmentOf(r, t0); t0 < t1; s++ {
		end := min(t1, int(r.SegStart[s+1]))
		if slot := r.SegAdapter[s]; slot >= 0 && end > t0 {
			e := &table.entries[slot]
			if e.rank > z.cols {
				panic(fmt.Sprintf("cpu: an adapter of rank %d over an A of %d rows", e.rank, z.cols))
			}
			at := e.rank * (ref.Offset + n0)
			switch {
			case e.rank == 0: // an empty slot adds nothing
			case e.block.h != nil:
				b.k.ExpandNTBF16(y.at[t0*y.ld:], y.ld, z.at[t0*z.ld:], z.ld, e.block.h[at:], e.rank, end-t0, n, e.rank)
			default:
				b.k.ExpandNTF32(y.at[t0*y.ld:], y.ld, z.at[t0*z.ld:], z.ld, e.block.f[at:], e.rank, end-t0, n, e.rank)
			}
		}
		t0 = end
	}
}

// segmentOf finds the segment of a token.
func segmentOf(r *kernels.Record, t int) int {
	lo, hi := 0, int(r.Head[kernels.HeadSegs])
	for lo+1 < hi {
		if mid := (lo + hi) / 2; int(r.SegStart[mid]) <= t {
			lo = mid
		} else {
			hi = mid
		}
	}
	return lo
}
