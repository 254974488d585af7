//go:build cuda

package cuda

import "bhive/kernels"

// notYet is the panic of a training op: Info says that there are none.
const notYet = "cuda: training ops are not on this device yet"

// laneTable has no use before the training ops.
type laneTable int

func (t laneTable) Lanes() int { return int(t) }

// NewLaneTable makes a table that no op reads.
func (b *Backend) NewLaneTable(lanes int) (kernels.LaneTable, error) { return laneTable(lanes), nil }

// FreeLaneTable does nothing: a table holds nothing.
func (b *Backend) FreeLaneTable(kernels.LaneTable) {}

func (b *Backend) SetLane(kernels.Stream, kernels.LaneTable, int, kernels.Tensor, int, float32) {
	panic(notYet)
}
func (b *Backend) CrossEntropy(_ kernels.Stream, _, _, _ kernels.Tensor, _ kernels.Weight, _ kernels.Step) {
	panic(notYet)
}
func (b *Backend) NormBackward(_ kernels.Stream, _, _, _, _, _ kernels.Tensor, _ kernels.Step) {
	panic(notYet)
}
func (b *Backend) ExpandBackward(kernels.Stream, kernels.ExpandBackwardArgs, kernels.Step) {
	panic(notYet)
}
func (b *Backend) LinearBackward(_ kernels.Stream, _, _ kernels.Tensor, _ kernels.Weight, _ bool, _ kernels.Step) {
	panic(notYet)
}
func (b *Backend) MLPBackward(_ kernels.Stream, _, _, _ kernels.Tensor, _ kernels.Step) {
	panic(notYet)
}
func (b *Backend) MLPForward(_ kernels.Stream, _, _ kernels.Tensor, _ kernels.Step) { panic(notYet) }
func (b *Backend) AttentionBackward(kernels.Stream, kernels.AttentionBackwardArgs, kernels.Step) {
	panic(notYet)
}
func (b *Backend) QKVBackward(kernels.Stream, kernels.QKVBackwardArgs, kernels.Step) { panic(notYet) }
func (b *Backend) GradNorm(kernels.Stream, kernels.Tensor, kernels.LaneTable)        { panic(notYet) }
func (b *Backend) AdamW(kernels.Stream, kernels.AdamWArgs)                           { panic(notYet) }
func (b *Backend) Gram(_ kernels.Stream, _, _ kernels.Tensor, _ kernels.Step)        { panic(notYet) }
