//go:build cuda

package cuda

import "bhive/kernels"

// notYet is the panic of a training op: Info says that there are none.
const notYet = "cuda: training ops are not on this device yet"

func (b *Backend) NormBackward(_ kernels.Stream, _, _, _, _, _ kernels.Tensor, _ kernels.Step) {
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
