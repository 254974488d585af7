//go:build cuda

package cuda

import (
	"fmt"

	"bhive/kernels"
)

// shrinkShared is the shrink kernel's shared memory: 8 warps' two runs of 32 rows of B.
const shrinkShared = 8 * 2 * 32 * 144

// gradientShared is the gradient kernel's: 4 stages of 64 tokens by rows columns of dy, and by 64 of z, and the shares to be added.
func gradientShared(rows int) int { return 4*(64*rows*2+64*144) + 8*16*64*4 }

// ExpandBackward: dz[t] = dy[t]·B and dB += scaling·dy[t]ᵀ·z[t], each in an order of its own that is always the same.
func (b *Backend) ExpandBackward(s kernels.Stream, a kernels.ExpandBackwardArgs, step kernels.Step) {
	m, dt, n, r := step.Bucket.Tokens, b.config.Working, a.B.Out, recordOf(step)
	z := a.DYZ.Cols - n
	if z < 0 || a.Grad.Table != nil && (a.Grad.Out != n || a.Grad.Offset != a.B.Offset) {
		panic(fmt.Sprintf("cuda: expand backward: B of %+v, gradient of %+v, dyz of %d columns", a.B, a.Grad, a.DYZ.Cols))
	}
	if z == 0 {
		return
	}
	da, ds := matrix(a.DYZ, dt, m, n+z, "expand backward: dyz")
	za, zs := matrix(a.Z, dt, m, z, "expand backward: z")
	table, offset := tableOf(a.B, n, "expand backward")
	lanes := uint64(0)
	if a.Grad.Table != nil {
		lanes = uint64(a.Grad.Table.(*laneTable).at)
	}
	launch := func(name string, gx, gy, shared int) {
		b.launch(s, name, gx, gy, 1, 256, shared, da, ds, za, zs, uint64(n), uint64(z), table, offset, lanes, uint64(a.Grad.Offset),
			r.at(atAdapter), r.at(atSegStart), r.at(atSegAdapter), r.at(atSegLane), r.at(atHead))
	}
	// The gradients first: z may lie where dz goes.
	wide := dt == kernels.BF16 && n%8 == 0 && ds%8 == 0 && da%16 == 0
	switch {
	case lanes == 0:
	case wide && z%8 == 0 && zs%8 == 0 && za%16 == 0:
		rows := 64
		if n < 64*b.processors {
			rows = 32
		}
		launch(fmt.Sprintf("gradient%d_bf16", rows), parts(n, rows), parts(z, 64), gradientShared(rows))
	default:
		launch("gradient_plain"+b.suffix(), parts(n*z, 256), 1, 0)
	}
	if wide {
		launch("shrink_bf16", parts(m, 32)+step.Bucket.Seqs, parts(z, 64), shrinkShared)
	} else {
		launch("shrink_plain"+b.suffix(), m, 1, 0)
	}
}
