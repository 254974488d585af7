//go:build cuda

package cuda

import "bhive/kernels"

// NormBackward: dx[t] += rstd·(w·dy − x·rstd²·mean(w·dy·x)).
func (b *Backend) NormBackward(s kernels.Stream, dx, dy, x, w, rstd kernels.Tensor, step kernels.Step) {
	n, h, dt := step.Bucket.Tokens, x.Cols, b.config.Working
	da, ds := matrix(dx, dt, n, h, "norm backward: dx")
	ya, ys := matrix(dy, dt, n, h, "norm backward: dy")
	xa, xs := matrix(x, dt, n, h, "norm backward: x")
	wa := needed(w, h, "norm backward: w")
	name, threads := "norm_backward"+b.suffix(), min(512, rowThreads(h))
	if dt == kernels.BF16 && h%8 == 0 && h <= 8*1024 && (ds|ys|xs)%8 == 0 && (da|ya|xa|wa)%16 == 0 {
		name, threads = "norm_backward8_bf16", rowThreads(h/8)
	}
	b.launch(s, name, n, 1, 1, threads, 0, da, ds, ya, ys, xa, xs, wa, needed(rstd, n, "norm backward: rstd"), uint64(h), recordOf(step).at(atHead))
}

// needed is vector for what must be there.
func needed(t kernels.Tensor, n int, name string) uint64 {
	if !t.Present() {
		panic("cuda: " + name + " is absent")
	}
	return vector(t, n, name)
}
