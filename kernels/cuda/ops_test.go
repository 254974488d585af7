//go:build cuda

package cuda

import (
	"fmt"
	"math"
	"testing"

	"bhive/kernels"
)

// testRanks are the ranks of four adapters, by the rows of A.
var testRanks = map[int][]int{0: {0, 0, 0, 0}, 16: {4, 8, 3, 16}, 64: {64, 16, 40, 32}}

func TestRowOps(t *testing.T) {
	mixes(t, func(p *pair, seqs []seq) {
		const h, v = 72, 99
		b := p.step(v, seqs...)
		m := b.gpu.Bucket.Tokens
		e := p.weight(v, h, 0)
		b.rec.Feed[0] = 1
		if b.tokens() > 1 {
			b.rec.Feed[1] = 2
		}
		p.upload(b)
		previous := []int32{5, -1, 9} // −1: a row without a draw
		var sampled [2]kernels.Sampled
		for i, s := range []*side{p.gpu, p.cpu} {
			token, err := s.Alloc(kernels.I32, 1, 3)
			if err != nil {
				t.Fatal(err)
			}
			s.Upload(s.s, token, bytesOf(previous))
			sampled[i] = kernels.Sampled{Token: token}
		}
		x := p.garbage(m, h)
		p.gpu.Embed(p.gpu.s, x.gpu, e.gpu, sampled[0], b.gpu)
		p.cpu.Embed(p.cpu.s, x.cpu, e.cpu, sampled[1], b.cpu)
		p.same("embed", x, b.tokens(), 0)
		y, w, rstd := p.garbage(m, h), p.f32(1, h, p.normal(h, 1)), p.f32(1, m, nans(m))
		p.gpu.RMSNorm(p.gpu.s, y.gpu, x.gpu, w.gpu, rstd.gpu, 1e-5, b.gpu)
		p.cpu.RMSNorm(p.cpu.s, y.cpu, x.cpu, w.cpu, rstd.cpu, 1e-5, b.cpu)
		p.same("norm", y, b.tokens(), p.tol())
		rows := min(3, b.tokens())
		b.rec.Head[kernels.HeadRows] = int32(rows)
		for i := range rows {
			b.rec.RowToken[i] = int32(b.tokens() - 1 - i)
		}
		p.upload(b)
		g := p.garbage(b.gpu.Bucket.Rows, h)
		p.gpu.GatherRows(p.gpu.s, g.gpu, x.gpu, b.gpu)
		p.cpu.GatherRows(p.cpu.s, g.cpu, x.cpu, b.cpu)
		p.same("gather", g, rows, 0)
	})
}

func TestLinear(t *testing.T) {
	for _, c := range []Config{{Working: kernels.F32}, {Working: kernels.BF16}, {Working: kernels.BF16, NoLt: true}, {Working: kernels.BF16, BatchInvariant: true}} {
		shapes := [][3]int{{83, 45, 11}, {83, 48, 5}, {300, 200, 16}, {1000, 576, 64}, {129, 4096, 0}, {8200, 4096, 16}}
		for _, shape := range short(shapes, append(shapes[:4:4], [3]int{129, 72, 0})) {
			for _, m := range short([]int{1, 5, 9, 17, 33, 62, 100, 126, 133, 300}, []int{1, 9, 17, 33, 62, 126, 133}) {
				if shape[0] > 8000 && (c.Working == kernels.F32 || m != 1 && m != 126) {
					continue // one that takes the paired kernel
				}
				t.Run(fmt.Sprintf("%s/invariant=%v/lt=%v/%v/%d", c.Working, c.BatchInvariant, !c.NoLt, shape, m), func(t *testing.T) {
					p := newPair(t, c)
					out, in, r := shape[0], shape[1], shape[2]
					w := p.weight(out, in, r)
					b := p.step(9, seq{m, 0, -1})
					x := p.act(m+2, in, append(p.normal(m*in, 1), make([]float32, 2*in)...))
					yz, l := p.garbage(m+2, out+r), p.f32(m+2, out, nans((m+2)*out))
					p.cpu.Linear(p.cpu.s, yz.cpu, x.cpu, w.cpu, b.cpu)
					if r == 0 {
						p.cpu.LinearRows(p.cpu.s, l.cpu, x.cpu, w.cpu, b.cpu)
					}
					own, be := byOwn, p.gpu.Backend.(*Backend)
					for _, only := range []*way{nil, &own} { // as this card does it, and as one below Hopper
						be.only = only
						yz.gpu, l.gpu = p.gpu.tensor(p.dt, m+2, out+r, nans((m+2)*(out+r))), p.gpu.tensor(kernels.F32, m+2, out, nans((m+2)*out))
						p.gpu.Linear(p.gpu.s, yz.gpu, x.gpu, w.gpu, b.gpu)
						if r == 0 {
							p.gpu.LinearRows(p.gpu.s, l.gpu, x.gpu, w.gpu, b.gpu)
						}
						be.only = nil
						p.sameRows("linear", yz, m, max(p.tol(), 2e-4)) // sums of up to 4,096 products of about 1
						if r == 0 {
							p.sameRows("linear rows", l, m, 1e-4)
						}
					}
				})
			}
		}
	}
}

// sameRows is same for an op that may write past the counts: cuBLASLt multiplies whole buckets.
func (p *pair) sameRows(name string, t both, n int, tol float64) {
	p.Helper()
	p.same(name, both{t.gpu.RowRange(0, n), t.cpu.RowRange(0, n)}, n, tol)
}

// carry runs a ResidualNorm with a carry: out is rounded, what that took is in the carry, and together they are far nearer to the sum than out is.
func (p *pair) carry(b *batch, name string, h, r int, a kernels.ResidualNormArgs, fold bool) {
	p.Helper()
	m := b.gpu.Bucket.Tokens
	x, y, c := p.normal(m*h, 1), p.normal(m*(h+r), 1), p.normal(m*h, 1e-3)
	out, norm, carry := p.garbage(m, h), p.garbage(m, h), p.act(m, h, c)
	a.X, a.YZ, a.B = p.gpu.tensor(p.dt, m, h, x), p.gpu.tensor(p.dt, m, h+r, y), kernels.BRef{}
	a.Out, a.Normed, a.Rstd, a.Carry, a.Fold = out.gpu, norm.gpu, kernels.Tensor{}, carry.gpu, fold
	p.gpu.ResidualNorm(p.gpu.s, a, b.gpu)
	bias := p.gpu.values(a.Bias)
	got, left := p.gpu.values(out.gpu), p.gpu.values(carry.gpu)
	for t := range b.tokens() {
		for i := range h {
			sum := x[t*h+i] + y[t*(h+r)+i] + bias[i]
			all, o, l := float64(sum)+float64(c[t*h+i]), got[t*h+i], left[t*h+i]
			if want := round(sum, p.dt); !fold && p.dt == kernels.BF16 && o != want {
				p.Fatalf("%s: out [%d, %d] is %v, want %v", name, t, i, o, want)
			}
			if d := math.Abs(float64(o) + float64(l) - all); d > 3e-5*(1+math.Abs(all)) {
				p.Fatalf("%s: [%d, %d] is %v and %v, together %v off %v", name, t, i, o, l, d, all)
			}
			if d := math.Abs(float64(o) - all); fold && d > (math.Abs(all)+1e-3)/256 {
				p.Fatalf("%s: out [%d, %d] is %v, %v off %v", name, t, i, o, d, all)
			}
		}
	}
}

func TestEpilogues(t *testing.T) {
	mixes(t, func(p *pair, seqs []seq) {
		b := p.step(9, seqs...)
		m := b.gpu.Bucket.Tokens
		for _, shape := range [][2]int{{72, 16}, {600, 16}, {2312, 64}, {136, 64}, {72, 0}} {
			h, testR := shape[0], shape[1]
			table := p.adapters(3+2*h, testRanks[testR]...)
			yz, x := p.act(m, h+testR, p.normal(m*(h+testR), 1)), p.act(m, h, p.normal(m*h, 1))
			out, normed, rstd := p.garbage(m, h), p.garbage(m, h), p.f32(1, m, nans(m))
			w, bias := p.f32(1, h, p.normal(h, 1)), p.f32(1, 2*h, p.normal(2*h, 1))
			gb, cb := table.ref(3, h)
			ga := kernels.ResidualNormArgs{Out: out.gpu, Normed: normed.gpu, X: x.gpu, YZ: yz.gpu, Bias: bias.gpu, Norm: w.gpu, Eps: 1e-5, B: gb, Rstd: rstd.gpu}
			p.gpu.ResidualNorm(p.gpu.s, ga, b.gpu)
			p.cpu.ResidualNorm(p.cpu.s, kernels.ResidualNormArgs{Out: out.cpu, Normed: normed.cpu, X: x.cpu, YZ: yz.cpu, Bias: bias.cpu, Norm: w.cpu, Eps: 1e-5, B: cb, Rstd: rstd.cpu}, b.cpu)
			p.same("residual", out, b.tokens(), p.tol())
			p.same("normed", normed, b.tokens(), p.tol())
			// And by the other ways: the oracle has written into its YZ, so it runs once.
			be := p.gpu.Backend.(*Backend)
			for _, way := range []struct {
				name              string
				hopper, invariant bool
			}{{"one block", false, false}, {"a cluster", be.hopper, true}} {
				hopper, invariant := be.hopper, be.config.BatchInvariant
				other, norm := p.garbage(m, h), p.garbage(m, h)
				ga.Out, ga.Normed, ga.Rstd = other.gpu, norm.gpu, kernels.Tensor{}
				be.hopper, be.config.BatchInvariant = way.hopper, way.invariant
				p.gpu.ResidualNorm(p.gpu.s, ga, b.gpu)
				for _, fold := range []bool{false, true} {
					p.carry(b, fmt.Sprintf("residual by %s with a carry, fold %v", way.name, fold), h, testR, ga, fold)
				}
				be.hopper, be.config.BatchInvariant = hopper, invariant
				p.same("residual by "+way.name, both{other.gpu, out.cpu}, b.tokens(), p.tol())
				p.same("normed by "+way.name, both{norm.gpu, normed.cpu}, b.tokens(), p.tol())
			}

			gu, act, save := p.act(m, 2*h+testR, p.normal(m*(2*h+testR), 1)), p.garbage(m, h), p.garbage(m, 2*h)
			gb, cb = table.ref(3, 2*h)
			p.gpu.MLP(p.gpu.s, kernels.MLPArgs{Act: act.gpu, YZ: gu.gpu, Bias: bias.gpu, B: gb, GateUp: save.gpu}, b.gpu)
			p.cpu.MLP(p.cpu.s, kernels.MLPArgs{Act: act.cpu, YZ: gu.cpu, Bias: bias.cpu, B: cb, GateUp: save.cpu}, b.cpu)
			p.same("act", act, b.tokens(), p.tol())
			p.same("gate and up", save, b.tokens(), p.tol())
		}
	})
}

// heads are shapes of attention: query heads, key heads, head size.
var heads = [][3]int{{6, 2, 10}, {8, 2, 64}, {9, 3, 64}, {8, 1, 128}, {4, 4, 128}}

func (p *pair) cache(b *batch, kv, d int) (g, c kernels.KVCache) {
	spec := kernels.KVSpec{Layers: 2, Blocks: b.gpu.Bucket.Seqs * b.gpu.Bucket.Blocks, BlockTokens: p.block, KVHeads: kv, HeadDim: d}
	g, err := p.gpu.NewKVCache(spec)
	if err != nil {
		p.Fatal(err)
	}
	if c, err = p.cpu.NewKVCache(spec); err != nil {
		p.Fatal(err)
	}
	return g, c
}

func (p *pair) rope(positions, d int) both {
	x := make([]float32, positions*d)
	for i := range positions {
		for j := range d / 2 {
			a := float64(i) * math.Pow(100, -float64(2*j)/float64(d))
			x[i*d+j], x[i*d+d/2+j] = float32(math.Cos(a)), float32(math.Sin(a))
		}
	}
	return p.f32(positions, d, x)
}

// fillCache writes K and V of all positions of the batch's sequences but one through QKV steps, on both sides, in layer 1.
func (p *pair) fillCache(seqs []seq, b *batch, g, c kernels.KVCache, hq, kv, d, but int) {
	for i, s := range seqs {
		if i == but {
			continue
		}
		n := s.n + s.context
		f := p.step(9, seq{n, 0, -1})
		f.rec.Bucket = f.gpu.Bucket
		for j := range n {
			f.rec.KVSlot[j] = int32(blockOf(i, j/p.block, b.gpu.Bucket.Blocks)*p.block + j%p.block)
		}
		p.upload(f)
		out := (hq + 2*kv) * d
		m := f.gpu.Bucket.Tokens
		yz, q, rope := p.act(m, out, p.normal(m*out, 1)), p.garbage(m, hq*d), p.rope(n+1, d)
		p.gpu.QKV(p.gpu.s, kernels.QKVArgs{Q: q.gpu, YZ: yz.gpu, Eps: 1e-5, Rope: rope.gpu, Cache: g, Layer: 1}, f.gpu)
		p.cpu.QKV(p.cpu.s, kernels.QKVArgs{Q: q.cpu, YZ: yz.cpu, Eps: 1e-5, Rope: rope.cpu, Cache: c, Layer: 1}, f.cpu)
	}
}

func (p *pair) attend(seqs []seq, shape [3]int, window int) {
	p.Helper()
	b := p.step(9, seqs...)
	hq, kv, d := shape[0], shape[1], shape[2]
	g, c := p.cache(b, kv, d)
	p.fillCache(seqs, b, g, c, hq, kv, d, -1)
	m := b.gpu.Bucket.Tokens
	q, o, lse := p.act(m, hq*d, p.normal(m*hq*d, 1)), p.garbage(m, hq*d), both{}
	if b.gpu.Bucket.MaxQuery > 1 { // a decode is not saved
		lse = p.f32(m, hq, nans(m*hq))
	}
	scale := float32(1 / math.Sqrt(float64(d)))
	for range 2 { // a second run finds the counters as the first one left them
		p.gpu.Attention(p.gpu.s, kernels.AttentionArgs{Out: o.gpu, Q: q.gpu, Cache: g, Layer: 1, Scale: scale, Window: window, LSE: lse.gpu}, b.gpu)
	}
	p.cpu.Attention(p.cpu.s, kernels.AttentionArgs{Out: o.cpu, Q: q.cpu, Cache: c, Layer: 1, Scale: scale, Window: window, LSE: lse.cpu}, b.cpu)
	p.same("attention", o, b.tokens(), p.tol())
	if lse.gpu.Present() {
		p.same("log-sum-exp", lse, b.tokens(), p.tol())
	}
}

func TestAttention(t *testing.T) {
	for _, c := range []Config{{Working: kernels.F32}, {Working: kernels.BF16}, {Working: kernels.BF16, NoWarpgroups: true}, {Working: kernels.BF16, BatchInvariant: true}} {
		for _, shape := range short(heads, heads[:4]) {
			for _, window := range short([]int{0, 5, 100}, []int{0, 5}) {
				name := fmt.Sprintf("%s/invariant=%v/warps=%v/%v/%d", c.Working, c.BatchInvariant, c.NoWarpgroups, shape, window)
				for _, n := range sizes() {
					if n == 989 && (c.BatchInvariant || c.NoWarpgroups) {
						continue
					}
					t.Run(fmt.Sprintf("%s/%d", name, n), func(t *testing.T) {
						var seqs []seq
						for i, l := range lengths[n] {
							seqs = append(seqs, seq{l, i * 9 % 20, -1})
						}
						newPair(t, c).attend(seqs, shape, window)
					})
				}
				for _, n := range short([]int{1, 3, 40, 150}, []int{3, 40}) {
					for _, block := range short([]int{8, 16, 48}, []int{8, 16}) { // 8 is not for the decode kernel
						if n == 150 && (block != 16 || c.Working == kernels.F32) {
							continue
						}
						t.Run(fmt.Sprintf("%s/decode%d/%d", name, n, block), func(t *testing.T) {
							p := newPair(t, c)
							p.block = block
							p.attend(decodes(n, func(int) int { return -1 }), shape, window)
						})
					}
				}
			}
		}
	}
}

func TestQKV(t *testing.T) {
	mixes(t, func(p *pair, seqs []seq) {
		for _, shape := range heads[:4] {
			for _, norms := range []bool{false, true} {
				testR := 16
				if norms {
					testR = 64
				}
				b := p.step(9, seqs...)
				hq, kv, d := shape[0], shape[1], shape[2]
				g, c := p.cache(b, kv, d)
				m, out := b.gpu.Bucket.Tokens, (hq+2*kv)*d
				table := p.adapters(3+out, testRanks[testR]...)
				gb, cb := table.ref(3, out)
				yz, q, pre := p.act(m, out+testR, p.normal(m*(out+testR), 1)), p.garbage(m, hq*d), p.garbage(m, (hq+kv)*d)
				bias, rope := p.f32(1, out, p.normal(out, 1)), p.rope(800, d)
				ga := kernels.QKVArgs{Q: q.gpu, YZ: yz.gpu, Bias: bias.gpu, Eps: 1e-5, Rope: rope.gpu, Cache: g, Layer: 1, B: gb, Pre: pre.gpu}
				ca := kernels.QKVArgs{Q: q.cpu, YZ: yz.cpu, Bias: bias.cpu, Eps: 1e-5, Rope: rope.cpu, Cache: c, Layer: 1, B: cb, Pre: pre.cpu}
				if norms {
					qn, kn := p.f32(1, d, p.normal(d, 1)), p.f32(1, d, p.normal(d, 1))
					ga.QNorm, ga.KNorm, ca.QNorm, ca.KNorm = qn.gpu, kn.gpu, qn.cpu, kn.cpu
				}
				p.gpu.QKV(p.gpu.s, ga, b.gpu)
				p.cpu.QKV(p.cpu.s, ca, b.cpu)
				p.same("q", q, b.tokens(), p.tol())
				p.same("pre", pre, b.tokens(), p.tol())
				// K and V show in what attention makes of them; contexts before the step hold zeros on both sides.
				x, o := p.act(m, hq*d, p.normal(m*hq*d, 1)), p.garbage(m, hq*d)
				p.gpu.Attention(p.gpu.s, kernels.AttentionArgs{Out: o.gpu, Q: x.gpu, Cache: g, Layer: 1, Scale: 0.1}, b.gpu)
				p.cpu.Attention(p.cpu.s, kernels.AttentionArgs{Out: o.cpu, Q: x.cpu, Cache: c, Layer: 1, Scale: 0.1}, b.cpu)
				p.same("attention over k and v", o, b.tokens(), p.tol())
			}
		}
	})
}

func TestCopyAndZero(t *testing.T) {
	p := newPair(t, Config{Working: kernels.BF16})
	x := p.normal(7*30, 1)
	src := p.gpu.tensor(kernels.BF16, 7, 30, x)
	dst := p.gpu.tensor(kernels.F32, 7, 20, nans(140))
	p.gpu.Copy(p.gpu.s, dst, src.ColRange(4, 24))
	got := p.gpu.values(dst)
	for i := range got {
		if want := x[i/20*30+4+i%20]; got[i] != want {
			t.Fatalf("copy[%d] = %v, want %v", i, got[i], want)
		}
	}
	p.gpu.Zero(p.gpu.s, dst.ColRange(3, 5))
	for i, v := range p.gpu.values(dst) {
		if zero := i%20 >= 3 && i%20 < 5; zero != (v == 0) {
			t.Fatalf("zero[%d] = %v", i, v)
		}
	}
}

// TestRandomWeight: noise made on the device is the noise that a host makes.
func TestRandomWeight(t *testing.T) {
	for _, d := range []kernels.DType{kernels.F32, kernels.BF16} {
		p := newPair(t, Config{Working: d})
		spec := kernels.WeightSpec{Parts: []kernels.Matrix{kernels.Random{R: 50, C: 24, Seed: 7, Scale: 0.1}}, Format: kernels.FormatBF16}
		w, err := p.gpu.NewWeight(spec)
		if err != nil {
			t.Fatal(err)
		}
		c, err := p.cpu.NewWeight(spec)
		if err != nil {
			t.Fatal(err)
		}
		b := p.step(50, seq{50, 0, -1})
		x := p.garbage(52, 24)
		p.gpu.Embed(p.gpu.s, x.gpu, w, kernels.Sampled{}, b.gpu)
		p.cpu.Embed(p.cpu.s, x.cpu, c, kernels.Sampled{}, b.cpu)
		p.same("random rows", x, 50, map[kernels.DType]float64{kernels.F32: 5e-3, kernels.BF16: 0}[d])
	}
}

func TestCopyWide(t *testing.T) {
	p := newPair(t, Config{Working: kernels.BF16})
	for _, d := range []kernels.DType{kernels.F32, kernels.BF16} {
		const rows, cols, from, to = 133, 88, 16, 80
		x := p.normal(rows*cols, 1)
		src, dst := p.gpu.tensor(d, rows, cols, x), p.gpu.tensor(d, rows, cols, nans(rows*cols))
		p.gpu.Copy(p.gpu.s, dst.ColRange(from-8, to-8), src.ColRange(from, to))
		for i, v := range p.gpu.values(dst) {
			r, c := i/cols, i%cols
			if in := c >= from-8 && c < to-8; in && v != x[r*cols+c+8] || !in && v == v {
				t.Fatalf("%s [%d, %d] = %v", d, r, c, v)
			}
		}
	}
}
