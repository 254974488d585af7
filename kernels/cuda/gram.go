//go:build cuda

package cuda

import (
	"fmt"

	"bhive/kernels"
)

// Gram: c += Σ x[t]ᵀ·x[t] over the tokens with a label, in order.
func (b *Backend) Gram(s kernels.Stream, c, x kernels.Tensor, step kernels.Step) {
	if !step.Bucket.Training {
		panic(fmt.Sprintf("cuda: gram: a step of %d tokens without labels", step.Bucket.Tokens))
	}
	k, r := x.Cols, recordOf(step)
	ca, cs := matrix(c, kernels.F32, k, k, "gram: c")
	xa, xs := matrix(x, b.config.Working, step.Bucket.Tokens, k, "gram: x")
	b.launch(s, "gram"+b.suffix(), parts(k, 64), parts(k, 64), 1, 256, 0, ca, cs, xa, xs, uint64(k), r.at(atLabel), r.at(atHead))
}
