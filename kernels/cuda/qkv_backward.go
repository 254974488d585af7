//go:build cuda

package cuda

import (
	"fmt"

	"bhive/kernels"
)

// QKVBackward: dy = [normᵀ(ropeᵀ(dq)), normᵀ(ropeᵀ(dk)), dv].
func (b *Backend) QKVBackward(s kernels.Stream, a kernels.QKVBackwardArgs, step kernels.Step) {
	m, dt, r := step.Bucket.Tokens, b.config.Working, recordOf(step)
	d := a.DQ.Cols / a.Heads
	q, kv, all := a.Heads*d, a.KVHeads*d, a.Heads+2*a.KVHeads
	if (a.QNorm.Present() || a.KNorm.Present()) && !a.Pre.Present() {
		panic(fmt.Sprintf("cuda: qkv backward: norms of %d heads without what was normed", a.Heads))
	}
	if d > 1024 {
		panic(fmt.Sprintf("cuda: qkv backward: heads of %d values, at most 1024", d))
	}
	ya, ys := matrix(a.DY, dt, m, q+2*kv, "qkv backward: dy")
	qa, qs := matrix(a.DQ, dt, m, q, "qkv backward: dq")
	ka, ks := matrix(a.DK, dt, m, kv, "qkv backward: dk")
	va, vs := matrix(a.DV, dt, m, kv, "qkv backward: dv")
	ra, rs := matrix(a.Rope, kernels.F32, 0, d, "qkv backward: rope")
	pa, ps := optional(a.Pre, dt, m, q+kv, "qkv backward: pre")
	name, gx, gy, threads, shared := "qkv_backward", m, all, parts(d, 32)*32, 4*d
	if each := d / 16; dt == kernels.BF16 && each*16 == d && each <= 32 && each&(each-1) == 0 &&
		(ys|qs|ks|vs|ps)%8 == 0 && (ya|qa|ka|va|ra|pa)%16 == 0 && rs%4 == 0 {
		name, gx, gy, threads, shared = "qkv_backward8", parts(m*all*each, 256), 1, 256, 0
	}
	b.launch(s, name+b.suffix(), gx, gy, 1, threads, shared, ya, ys, qa, qs, ka, ks, va, vs, ra, rs,
		vector(a.QNorm, d, "qkv backward: q norm"), vector(a.KNorm, d, "qkv backward: k norm"), float(float64(a.Eps)), pa, ps,
		uint64(a.Heads), uint64(a.KVHeads), uint64(d), r.at(atPosition), r.at(atHead))
}
