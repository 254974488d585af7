//go:build cuda

package cuda

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"bhive/kernels"
)

// bench is a backend with tensors that nobody looks at.
type bench struct {
	*testing.B
	*Backend
	s kernels.Stream
}

func newBench(b *testing.B, c Config) *bench {
	b.Helper()
	need(b)
	c.Working = kernels.BF16
	be, err := open(c)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := be.Close(); err != nil {
			b.Error(err)
		}
	})
	return &bench{b, be, be.NewStream()}
}

func (b *bench) tensor(d kernels.DType, rows, cols int) kernels.Tensor {
	b.Helper()
	t, err := b.Alloc(d, rows, cols)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { b.Free(t) })
	return t
}

// step is a decode step of n sequences with context tokens each, their blocks in random order; adapter gives a token's slot.
func (b *bench) step(n, context int, adapter func(int) int) kernels.Step {
	const p = 16
	each := (context + p - 1) / p
	step := kernels.Step{Bucket: kernels.Bucket{Tokens: n, Seqs: n, Rows: n, Blocks: each, MaxQuery: 1}}
	rec := kernels.NewRecord(step.Bucket, nil)
	order := rand.New(rand.NewPCG(1, 2)).Perm(n * each)
	for i := range n {
		for j := range each {
			rec.BlockTable[i*each+j] = int32(order[i*each+j])
		}
		at := context - 1
		rec.Feed[i], rec.Position[i], rec.Seq[i], rec.Adapter[i], rec.RowToken[i] = -1, int32((at+i)%context), int32(i), int32(adapter(i)), int32(i)
		rec.KVSlot[i] = rec.BlockTable[i*each+at/p]*p + int32(at%p)
		rec.QueryStart[i], rec.QueryStart[i+1], rec.Context[i] = int32(i), int32(i+1), int32(context)
	}
	segs := 0
	for i := range n {
		if segs == 0 || rec.SegAdapter[segs-1] != rec.Adapter[i] {
			rec.SegStart[segs], rec.SegAdapter[segs], rec.SegLane[segs] = int32(i), rec.Adapter[i], -1
			segs++
		}
	}
	rec.SegStart[segs] = int32(n)
	rec.Head[kernels.HeadTokens], rec.Head[kernels.HeadSeqs], rec.Head[kernels.HeadRows], rec.Head[kernels.HeadSegs] = int32(n), int32(n), int32(n), int32(segs)
	step.Words = b.tensor(kernels.I32, 1, len(rec.Words))
	b.Upload(b.s, step.Words, rec.Bytes())
	return step
}

// times runs a captured graph of n ops and reports the time of one and bytes over it.
func (b *bench) times(n int, bytes float64, op func(i int)) {
	b.Helper()
	all := func() {
		for i := range n {
			op(i)
		}
	}
	all()
	if err := b.s.Sync(); err != nil {
		b.Fatal(err)
	}
	g, err := b.Capture(b.s, all)
	if err != nil {
		b.Fatal(err)
	}
	defer g.Close()
	g.Launch(b.s)
	if err := b.s.Sync(); err != nil {
		b.Fatal(err)
	}
	begin, rounds := time.Now(), 0
	for b.Loop() {
		g.Launch(b.s)
		rounds++
	}
	if err := b.s.Sync(); err != nil {
		b.Fatal(err)
	}
	each := time.Since(begin).Seconds() / float64(rounds*n)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(1e6*each, "µs")
	b.ReportMetric(bytes/each/1e9, "GB/s")
}

func base(int) int { return -1 }

// BenchmarkLinear has the linears of a Llama-3-8B shape, a chain of launches through weights larger than the L2, by each way.
func BenchmarkLinear(t *testing.B) {
	for _, w := range []struct {
		name      string
		out, in   int
		rows, few int
	}{{"attn_in", 6144, 4096, 64, 24}, {"attn_out", 4096, 4096, 64, 24}, {"mlp_in", 28672, 4096, 64, 8}, {"mlp_down", 4096, 14336, 64, 12}, {"head", 128256, 4096, 0, 3}} {
		t.Run(w.name, func(t *testing.B) {
			b := newBench(t, Config{})
			var all []kernels.Weight
			for i := range w.few {
				spec := kernels.WeightSpec{Parts: []kernels.Matrix{kernels.Random{R: w.out, C: w.in, Seed: uint64(i), Scale: 0.02}}, Format: kernels.FormatBF16}
				if w.rows > 0 {
					spec.A = kernels.Random{R: w.rows, C: w.in, Seed: 99, Scale: 0.02}
				}
				k, err := b.NewWeight(spec)
				if err != nil {
					b.Fatal(err)
				}
				b.Cleanup(func() { b.FreeWeight(k) })
				all = append(all, k)
			}
			for _, n := range []int{1, 8, 16, 32, 48, 64, 96, 128} {
				x, step := b.tensor(kernels.BF16, n, w.in), b.step(n, 16, base)
				y, linear := b.tensor(kernels.BF16, n, w.out+w.rows), b.Linear
				if w.rows == 0 {
					y, linear = b.tensor(kernels.F32, n, w.out), b.LinearRows
				}
				for way, name := range []string{"own", "skinny", "lt"} {
					t.Run(fmt.Sprintf("%d/%s", n, name), func(t *testing.B) {
						b := &bench{t, b.Backend, b.s}
						b.only = wayOf(way)
						defer func() { b.only = nil }()
						b.times(len(all), float64(all[0].Bytes()), func(i int) { linear(b.s, y, x, all[i], step) })
					})
				}
			}
		})
	}
}

func wayOf(i int) *way {
	w := way(i)
	return &w
}

// BenchmarkAttention has decode attention of 32 heads over 8 of 128 values, with 2 and 3 blocks on a multiprocessor.
func BenchmarkAttention(t *testing.B) {
	for _, n := range []int{1, 8, 64, 128} {
		for _, context := range []int{512, 576, 640, 2048} {
			b := newBench(t, Config{})
			layers := max(2, min(32, 4<<30/(n*context*4096)))
			kv, err := b.NewKVCache(kernels.KVSpec{Layers: layers, Blocks: n * (context + 15) / 16, BlockTokens: 16, KVHeads: 8, HeadDim: 128})
			if err != nil {
				b.Fatal(err)
			}
			q, o, step := b.tensor(kernels.BF16, n, 4096), b.tensor(kernels.BF16, n, 4096), b.step(n, context, base)
			for each := 2; each <= 3; each++ {
				t.Run(fmt.Sprintf("%d/%d/%d", n, context, each), func(t *testing.B) {
					b := &bench{t, b.Backend, b.s}
					b.decodeBlocks = each
					b.times(layers, float64(n*context*4096), func(i int) {
						b.Attention(b.s, kernels.AttentionArgs{Out: o, Q: q, Cache: kv, Layer: i, Scale: 0.1}, step)
					})
				})
			}
			b.FreeKVCache(kv)
		}
	}
}

// BenchmarkLayer has whole layers of a Llama-3-8B shape at decode, 576 tokens of context, by adapters: what the epilogues cost between their linears.
func BenchmarkLayer(t *testing.B) {
	const layers, h, ff, heads, kvHeads, d, r, context = 8, 4096, 14336, 32, 8, 128, 64, 576
	const attn, widest = (heads + 2*kvHeads) * d, (heads+2*kvHeads)*d + 2*h + 2*ff
	b := newBench(t, Config{})
	outs, ins := [4]int{attn, h, 2 * ff, h}, [4]int{h, h, h, ff}
	var weights [layers][4]kernels.Weight
	bytes := 0.0
	for i := range weights {
		for j := range weights[i] {
			w, err := b.NewWeight(kernels.WeightSpec{Parts: []kernels.Matrix{kernels.Random{R: outs[j], C: ins[j], Seed: uint64(4*i + j), Scale: 0.02}},
				A: kernels.Random{R: r, C: ins[j], Seed: 99, Scale: 0.02}, Format: kernels.FormatBF16})
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(func() { b.FreeWeight(w) })
			weights[i][j] = w
			bytes += float64(w.Bytes())
		}
	}
	norm, rope := b.tensor(kernels.F32, 1, h), b.tensor(kernels.F32, context+24, d)
	for _, rank := range []int{16, 64} {
		blocks := make([]kernels.Tensor, 64)
		table, err := b.NewAdapterTable(len(blocks))
		if err != nil {
			b.Fatal(err)
		}
		for i := range blocks {
			if blocks[i], err = b.Alloc(kernels.BF16, 1, rank*widest*layers); err != nil {
				b.Fatal(err)
			}
			b.SetAdapter(b.s, table, i, blocks[i], rank)
		}
		for _, n := range []int{1, 8, 64, 128} {
			kv, err := b.NewKVCache(kernels.KVSpec{Layers: layers, Blocks: n * context / 16, BlockTokens: 16, KVHeads: kvHeads, HeadDim: d})
			if err != nil {
				b.Fatal(err)
			}
			x, normed, act, q := b.tensor(kernels.BF16, n, h), b.tensor(kernels.BF16, n, h), b.tensor(kernels.BF16, n, ff), b.tensor(kernels.BF16, n, heads*d)
			qkv, y, gu := b.tensor(kernels.BF16, n, attn+r), b.tensor(kernels.BF16, n, h+r), b.tensor(kernels.BF16, n, 2*ff+r)
			noise := make([]uint16, n*h)
			for i := range noise {
				noise[i] = roundBF16(float32(i%255) - 127)
			}
			b.Upload(b.s, x, bytesOf(noise))
			for _, distinct := range []int{0, 1, 8, 64} {
				if distinct > n || distinct == 0 && rank > 16 || distinct == 8 && rank > 16 {
					continue
				}
				step := b.step(n, context, func(i int) int {
					if distinct == 0 {
						return -1
					}
					return i * distinct / n
				})
				layer := func(b *bench, i int) {
					at, w := i*widest, &weights[i]
					ref := func(out int) kernels.BRef {
						at += out
						return kernels.BRef{Table: table, Offset: at - out, Out: out}
					}
					linear := func(yz, x kernels.Tensor, w kernels.Weight, out int) kernels.BRef {
						r := ref(out)
						if b.LinearB(b.s, yz, x, w, r, step) {
							return kernels.BRef{}
						}
						return r
					}
					r := linear(qkv, normed, w[0], attn)
					b.QKV(b.s, kernels.QKVArgs{Q: q, YZ: qkv, Rope: rope, Cache: kv, Layer: i, B: r}, step)
					b.Attention(b.s, kernels.AttentionArgs{Out: normed, Q: q, Cache: kv, Layer: i, Scale: 0.1}, step)
					r = linear(y, normed, w[1], h)
					b.ResidualNorm(b.s, kernels.ResidualNormArgs{Out: x, Normed: normed, X: x, YZ: y, Norm: norm, Eps: 1e-5, B: r}, step)
					b.LinearMLP(b.s, normed, w[2], kernels.MLPArgs{Act: act, YZ: gu, B: ref(2 * ff)}, step)
					r = linear(y, act, w[3], h)
					b.ResidualNorm(b.s, kernels.ResidualNormArgs{Out: x, Normed: normed, X: x, YZ: y, Norm: norm, Eps: 1e-5, B: r, Ahead: &kernels.KVLayer{Cache: kv, Layer: (i + 1) % layers}}, step)
				}
				t.Run(fmt.Sprintf("%d tokens, %d distinct of rank %d", n, distinct, rank), func(t *testing.B) {
					b := &bench{t, b.Backend, b.s}
					b.times(layers, bytes/layers+float64(n*context*4096+2*distinct*rank*widest), func(i int) { layer(b, i) })
				})
			}
			b.FreeKVCache(kv)
		}
		b.FreeAdapterTable(table)
		for _, block := range blocks {
			b.Free(block)
		}
	}
}

// BenchmarkEpilogue has the epilogues by adapters: GB/s of the activations, and of B read once for each adapter.
func BenchmarkEpilogue(t *testing.B) {
	const layers, h, ff, heads, kvHeads, d, r = 4, 4096, 14336, 32, 8, 128, 64
	const widest = layers * 2 * ff
	for _, c := range []struct{ n, distinct, rank int }{{1, 0, 16}, {1, 1, 16}, {64, 0, 16}, {64, 1, 16}, {64, 1, 64}, {64, 8, 16}, {64, 64, 16}, {64, 64, 64}, {128, 0, 16}, {8192, 0, 16}, {8192, 16, 16}} {
		t.Run(fmt.Sprintf("%d tokens, %d distinct of rank %d", c.n, c.distinct, c.rank), func(t *testing.B) {
			b, n := newBench(t, Config{}), c.n
			table, err := b.NewAdapterTable(64)
			if err != nil {
				b.Fatal(err)
			}
			for i := range c.distinct {
				b.SetAdapter(b.s, table, i, b.tensor(kernels.BF16, 1, c.rank*widest), c.rank)
			}
			context := 576
			if n > 256 {
				context = 48
			}
			step := b.step(n, context, func(i int) int {
				if c.distinct == 0 {
					return -1
				}
				return i * c.distinct / n // a step's sequences go by adapter
			})
			ref := func(i, out int) kernels.BRef { return kernels.BRef{Table: table, Offset: i * out, Out: out} }
			x, normed, act, q := b.tensor(kernels.BF16, n, h), b.tensor(kernels.BF16, n, h), b.tensor(kernels.BF16, n, ff), b.tensor(kernels.BF16, n, heads*d)
			norm, rope := b.tensor(kernels.F32, 1, h), b.tensor(kernels.F32, 600, d)
			kv, err := b.NewKVCache(kernels.KVSpec{Layers: 1, Blocks: n * (context + 15) / 16, BlockTokens: 16, KVHeads: kvHeads, HeadDim: d})
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(func() { b.FreeKVCache(kv) })
			residual := func(b *bench, i int, yz kernels.Tensor) {
				b.ResidualNorm(b.s, kernels.ResidualNormArgs{Out: x, Normed: normed, X: x, YZ: yz, Norm: norm, Eps: 1e-5, B: ref(i, h)}, step)
			}
			for _, k := range []struct {
				name       string
				out, moved int // columns of yz; columns read and written
				op         func(b *bench, i int, yz kernels.Tensor)
			}{
				{"qkv", (heads + 2*kvHeads) * d, 2 * (heads + 2*kvHeads) * d, func(b *bench, i int, yz kernels.Tensor) {
					b.QKV(b.s, kernels.QKVArgs{Q: q, YZ: yz, Rope: rope, Cache: kv, B: ref(i, (heads+2*kvHeads)*d)}, step)
				}},
				{"residual", h, 4 * h, residual},
				{"residual the other way", h, 4 * h, func(b *bench, i int, yz kernels.Tensor) { // by one block a token for a prefill, by clusters for a decode
					hopper, invariant := b.hopper, b.config.BatchInvariant
					b.hopper, b.config.BatchInvariant = n <= 256, n <= 256
					residual(b, i, yz)
					b.hopper, b.config.BatchInvariant = hopper, invariant
				}},
				{"mlp", 2 * ff, 3 * ff, func(b *bench, i int, yz kernels.Tensor) {
					b.MLP(b.s, kernels.MLPArgs{Act: act, YZ: yz, B: ref(i, 2*ff)}, step)
				}},
			} {
				yz, sites := b.tensor(kernels.BF16, n, k.out+r), widest/k.out
				t.Run(k.name, func(t *testing.B) {
					b := &bench{t, b.Backend, b.s}
					b.times(sites, float64(2*c.distinct*c.rank*k.out+2*n*k.moved), func(i int) { k.op(b, i, yz) })
				})
			}
		})
	}
}
