//go:build cuda

package cuda

import (
	"fmt"

	"gorgonia.org/cu"

	"bhive/kernels"
)

// laneTable is {gradient, its elements, rank, scaling} by lane, 32 bytes each, on the device.
type laneTable struct {
	at    cu.DevicePtr
	lanes int
}

func (t *laneTable) Lanes() int { return t.lanes }

// NewLaneTable makes an empty table.
func (b *Backend) NewLaneTable(lanes int) (kernels.LaneTable, error) {
	defer b.enter()()
	p, err := b.zeroed(int64(32 * lanes))
	if err != nil {
		return nil, err
	}
	b.owned = append(b.owned, p)
	return &laneTable{p, lanes}, nil
}

// FreeLaneTable frees a table.
func (b *Backend) FreeLaneTable(k kernels.LaneTable) {
	defer b.enter()()
	b.release(k.(*laneTable).at)
}

// SetLane writes or empties an entry.
func (b *Backend) SetLane(s kernels.Stream, k kernels.LaneTable, lane int, grad kernels.Tensor, rank int, scaling float32) {
	t := k.(*laneTable)
	if lane < 0 || lane >= t.lanes {
		panic(fmt.Sprintf("cuda: training lane %d of %d", lane, t.lanes))
	}
	if !grad.Present() {
		rank = 0
	} else if rank <= 0 || grad.Rows != 1 || grad.Cols%rank != 0 || grad.DType != kernels.F32 {
		panic(fmt.Sprintf("cuda: a lane of rank %d in a block %s [%d, %d]", rank, grad.DType, grad.Rows, grad.Cols))
	}
	b.launch(s, "set_lane", 1, 1, 1, 1, 0, uint64(t.at), uint64(lane), address(grad), uint64(grad.Cols), uint64(rank), float(float64(scaling)))
}
