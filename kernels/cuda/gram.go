//go:build cuda

package cuda

import (
	"fmt"

	"bhive/kernels"
)

// gramShared is the tile kernel's shared memory: 4 stages of 32 tokens by twice 128 columns.
const gramShared = 4 * 2 * 32 * 256

// Gram: c += Σ x[t]ᵀ·x[t] over the tokens with a label, in order.
func (b *Backend) Gram(s kernels.Stream, c, x kernels.Tensor, step kernels.Step) {
	if !step.Bucket.Training {
		panic(fmt.Sprintf("cuda: gram: a step of %d tokens without labels", step.Bucket.Tokens))
	}
	k, r := x.Cols, recordOf(step)
	ca, cs := matrix(c, kernels.F32, k, k, "gram: c")
	xa, xs := matrix(x, b.config.Working, step.Bucket.Tokens, k, "gram: x")
	name, each, shared := "gram"+b.suffix(), 64, 0
	if b.config.Working == kernels.BF16 && k%8 == 0 && xs%8 == 0 && xa%16 == 0 {
		name, each, shared = "gram_tile_bf16", 128, gramShared
	}
	b.launch(s, name, parts(k, each), parts(k, each), 1, 256, shared, ca, cs, xa, xs, uint64(k), r.at(atLabel), r.at(atHead))
}
