package cpu

import (
	"math"
	"testing"

	"bhive/kernels"
)

const (
	testHq, testHkv, testD = 6, 2, 10
	testR                  = 8
)

// rotate64 is RoPE on one head.
func rotate64(x []float64, table []float32) {
	h := len(x) / 2
	for i := range h {
		c, s := float64(table[i]), float64(table[h+i])
		x[i], x[i+h] = x[i]*c-x[i+h]*s, x[i+h]*c+x[i]*s
	}
}

func norm64(x []float64, w []float32, eps float64) float64 {
	rstd := 1 / math.Sqrt(dot64(x, x)/float64(len(x))+eps)
	for i := range x {
		x[i] *= rstd * float64(w[i])
	}
	return rstd
}

func (r *rig) ropeTable(positions, d int) kernels.Tensor {
	t := r.alloc(kernels.F32, positions, d)
	for p := range positions {
		for i := range d / 2 {
			a := float64(p) * math.Pow(100, -float64(2*i)/float64(d))
			values(t)[p*d+i], values(t)[p*d+d/2+i] = float32(math.Cos(a)), float32(math.Sin(a))
		}
	}
	return t
}

func (r *rig) cache(b *batch, layers int) *kvCache {
	c, err := r.NewKVCache(kernels.KVSpec{Layers: layers, Blocks: 2 * (b.step.Bucket.Seqs + 1) * b.step.Bucket.Blocks * 2, BlockTokens: blockTokens, KVHeads: testHkv, HeadDim: testD})
	if err != nil {
		r.Fatal(err)
	}
	return c.(*kvCache)
}

func TestQKV(t *testing.T) {
	mixes(t, func(r *rig, seqs []seq) {
		for _, norms := range []bool{false, true} {
			b := r.step(9, seqs...)
			m, d, out := b.step.Bucket.Tokens, testD, (testHq+2*testHkv)*testD
			a := kernels.QKVArgs{
				Q: r.garbage(m, testHq*d), YZ: r.random(m, out+testR, 1), Bias: r.random(1, out, 1), Eps: 1e-5, Rope: r.ropeTable(200, d),
				Cache: r.cache(b, 2), Layer: 1, B: kernels.BRef{Table: r.adapters(3+out, ranks...), Offset: 3, Out: out},
			}
			if norms {
				a.QNorm, a.KNorm, a.Pre = r.random(1, d, 1), r.random(1, d, 1), r.garbage(m, (testHq+testHkv)*d)
			}
			in := append([]float32(nil), values(a.YZ)...)
			r.QKV(r.s, a, b.step)
			c := a.Cache.(*kvCache)
			for i := range b.tokens() {
				yz := in[i*(out+testR):]
				y := f64(yz[:out])
				for j := range y {
					y[j] += float64(values(a.Bias)[j])
				}
				r.addExpand(y, yz[out:][:testR], a.B, int(b.rec.Adapter[i]))
				if norms {
					near(r, "pre", values(a.Pre)[i*(testHq+testHkv)*d:], y[:(testHq+testHkv)*d], tol)
				}
				for h := range testHq + testHkv {
					x := y[h*d:][:d]
					if norms {
						w := a.QNorm
						if h >= testHq {
							w = a.KNorm
						}
						norm64(x, values(w), 1e-5)
					}
					rotate64(x, values(a.Rope)[int(b.rec.Position[i])*d:][:d])
				}
				near(r, "q", values(a.Q)[i*testHq*d:], y[:testHq*d], tol)
				slot, loose := int(b.rec.KVSlot[i])*c.width, tol
				if r.config.Working == kernels.BF16 {
					loose = 4e-3
				}
				near(r, "k", r.widened(c.k[1].at(slot), c.width), y[testHq*d:][:c.width], loose)
				near(r, "v", r.widened(c.v[1].at(slot), c.width), y[(testHq+testHkv)*d:], loose)
			}
		}
	})
}

func TestResidualNorm(t *testing.T) {
	mixes(t, func(r *rig, seqs []seq) {
		const h = 37
		b := r.step(9, seqs...)
		m := b.step.Bucket.Tokens
		a := kernels.ResidualNormArgs{
			Normed: r.garbage(m, h), X: r.random(m, h, 1), YZ: r.random(m, h+testR, 1), Bias: r.random(1, h, 1), Norm: r.random(1, h, 1), Eps: 1e-5,
			B: kernels.BRef{Table: r.adapters(5+h, ranks...), Offset: 5, Out: h}, Rstd: r.garbage(1, m),
		}
		a.Out = a.X
		x, yz := append([]float32(nil), values(a.X)...), append([]float32(nil), values(a.YZ)...)
		r.ResidualNorm(r.s, a, b.step)
		for i := range b.tokens() {
			y := f64(yz[i*(h+testR):][:h])
			for j := range y {
				y[j] += float64(values(a.Bias)[j]) + float64(x[i*h+j])
			}
			r.addExpand(y, yz[i*(h+testR)+h:][:testR], a.B, int(b.rec.Adapter[i]))
			near(r, "out", values(a.Out)[i*h:], y, tol)
			rstd := norm64(y, values(a.Norm), 1e-5)
			near(r, "normed", values(a.Normed)[i*h:], y, tol)
			near(r, "rstd", values(a.Rstd)[i:], []float64{rstd}, tol)
		}
	})
}

// TestResidualCarry: with fold a carry is added to the sum and is over; without, nothing of float32 is rounded and it stays.
func TestResidualCarry(t *testing.T) {
	r := newRig(t, Config{Threads: 2})
	const h = 37
	b := r.step(9, seq{n: 3, adapter: -1, lane: -1})
	m := b.step.Bucket.Tokens
	x, y, carry := r.random(m, h, 1), r.random(m, h, 1), r.random(m, h, 1e-3)
	before := append([]float32(nil), values(carry)...)
	for _, fold := range []bool{false, true} {
		out := r.garbage(m, h)
		r.ResidualNorm(r.s, kernels.ResidualNormArgs{Out: out, Normed: r.garbage(m, h), X: x, YZ: y, Norm: r.random(1, h, 1), Eps: 1e-5, Carry: carry, Fold: fold}, b.step)
		for i := range b.tokens() * h {
			want, left := float64(values(x)[i])+float64(values(y)[i]), before[i]
			if fold {
				want, left = want+float64(left), 0
			}
			near(r, "out", values(out)[i:], []float64{want}, tol)
			if got := values(carry)[i]; got != left {
				t.Fatalf("fold %v: carry %d is %v, want %v", fold, i, got, left)
			}
		}
	}
}

func TestMLP(t *testing.T) {
	mixes(t, func(r *rig, seqs []seq) {
		const f = 53
		b := r.step(9, seqs...)
		m := b.step.Bucket.Tokens
		a := kernels.MLPArgs{Act: r.garbage(m, f), YZ: r.random(m, 2*f+testR, 1), Bias: r.random(1, 2*f, 1),
			B: kernels.BRef{Table: r.adapters(2*f, ranks...), Out: 2 * f}, GateUp: r.garbage(m, 2*f)}
		yz := append([]float32(nil), values(a.YZ)...)
		r.MLP(r.s, a, b.step)
		for i := range b.tokens() {
			y := f64(yz[i*(2*f+testR):][:2*f])
			for j := range y {
				y[j] += float64(values(a.Bias)[j])
			}
			r.addExpand(y, yz[i*(2*f+testR)+2*f:][:testR], a.B, int(b.rec.Adapter[i]))
			near(r, "gate and up", values(a.GateUp)[i*2*f:], y, tol)
			for j := range f {
				y[j] = y[j] / (1 + math.Exp(-y[j])) * y[f+j]
			}
			near(r, "act", values(a.Act)[i*f:], y[:f], tol)
		}
	})
}

func TestEmbedNormGather(t *testing.T) {
	mixes(t, func(r *rig, seqs []seq) {
		const h = 41
		b := r.step(30, seqs...)
		m := b.step.Bucket.Tokens
		w := r.weight(30, h, 0, kernels.FormatBF16)
		x, y, g := r.garbage(m, h), r.garbage(m, h), r.garbage(m, h)
		norm, rstd := r.random(1, h, 1), r.garbage(1, m)
		previous := kernels.Sampled{Token: r.alloc(kernels.I32, 1, 3)}
		ints(previous.Token, "test")[2] = 29
		b.rec.Feed[0] = 2
		n := min(3, b.tokens())
		b.rec.Head[kernels.HeadRows] = int32(n)
		for i := range n {
			b.rec.RowToken[i] = int32(b.tokens() - 1 - i)
		}
		r.Embed(r.s, x, w, previous, b.step)
		r.RMSNorm(r.s, y, x, norm, rstd, 1e-5, b.step)
		r.GatherRows(r.s, g, y, b.step)
		wide := r.wide(w)
		for i := range b.tokens() {
			id := b.rec.Token[i]
			if i == 0 {
				id = 29
			}
			want := append([]float64(nil), wide[id]...)
			near(r, "x", values(x)[i*h:], want, 0)
			s := norm64(want, values(norm), 1e-5)
			near(r, "y", values(y)[i*h:], want, tol)
			near(r, "rstd", values(rstd)[i:], []float64{s}, tol)
			if at := b.tokens() - 1 - i; at < n {
				near(r, "gathered", values(g)[at*h:], want, tol)
			}
		}
	})
}
