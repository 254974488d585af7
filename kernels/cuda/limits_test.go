//go:build cuda

package cuda

import (
	"errors"
	"fmt"
	"math"
	"testing"

	"bhive/kernels"
)

// TestMLPOfManyTokens: more tokens than a grid has places in its second direction, with adapters on both sides of where it ends.
func TestMLPOfManyTokens(t *testing.T) {
	for _, d := range []kernels.DType{kernels.F32, kernels.BF16} {
		p := newPair(t, Config{Working: d})
		const ff, r = 6, 16 // no multiple of 8: a token a block
		p.block = 512
		b := p.step(9, seq{gridRows - 30, 0, 0}, seq{60, 0, 1}, seq{1000, 0, -1}, seq{gridRows, 0, 3}, seq{7, 0, 0})
		m := b.gpu.Bucket.Tokens
		table := p.adapters(3+2*ff, 4, 8, 3, 16)
		gb, cb := table.ref(3, 2*ff)
		yz, bias, act, save := p.act(m, 2*ff+r, p.normal(m*(2*ff+r), 1)), p.f32(1, 2*ff, p.normal(2*ff, 1)), p.garbage(m, ff), p.garbage(m, 2*ff)
		p.gpu.MLP(p.gpu.s, kernels.MLPArgs{Act: act.gpu, YZ: yz.gpu, Bias: bias.gpu, B: gb, GateUp: save.gpu}, b.gpu)
		p.cpu.MLP(p.cpu.s, kernels.MLPArgs{Act: act.cpu, YZ: yz.cpu, Bias: bias.cpu, B: cb, GateUp: save.cpu}, b.cpu)
		p.same("act", act, b.tokens(), p.tol())
		p.same("gate and up", save, b.tokens(), p.tol())
		alone := p.garbage(m, ff) // without the save
		p.gpu.MLP(p.gpu.s, kernels.MLPArgs{Act: alone.gpu, YZ: yz.gpu, Bias: bias.gpu, B: gb}, b.gpu)
		p.same("act alone", both{alone.gpu, act.cpu}, b.tokens(), p.tol())
	}
}

// TestCopyOfLongRow: a row of more elements than an int32 counts, converted.
func TestCopyOfLongRow(t *testing.T) {
	if testing.Short() {
		t.Skip("13 GB")
	}
	p := newPair(t, Config{Working: kernels.BF16})
	const run = 4096
	const n = 1<<31 + 3*run
	src, err := p.gpu.Alloc(kernels.BF16, 1, n)
	if errors.Is(err, kernels.ErrNoMemory) {
		t.Skip(err)
	}
	dst, err := p.gpu.Alloc(kernels.F32, 1, n)
	if errors.Is(err, kernels.ErrNoMemory) {
		t.Skip(err)
	}
	runs := []int{0, 1<<31 - run/2, n - run}
	var want [][]float32
	for _, at := range runs {
		x := p.normal(run, 1)
		p.gpu.Copy(p.gpu.s, src.ColRange(at, at+run), p.gpu.tensor(kernels.BF16, 1, run, x))
		want = append(want, x)
	}
	p.gpu.Copy(p.gpu.s, dst, src)
	for i, at := range runs {
		for j, x := range p.gpu.values(dst.ColRange(at, at+run)) {
			if x != want[i][j] {
				t.Fatalf("copy[%d] = %v, want %v", at+j, x, want[i][j])
			}
		}
	}
}

// stale is a cache for a batch in memory that holds no numbers.
func (p *pair) stale(b *batch, kv, d int) (g, c kernels.KVCache) {
	spec := kernels.KVSpec{Layers: 2, Blocks: b.gpu.Bucket.Seqs * b.gpu.Bucket.Blocks, BlockTokens: p.block, KVHeads: kv, HeadDim: d}
	n := spec.Elements()
	in := p.working(1, n, nans(n))
	var err error
	spec.In = in.gpu
	if g, err = p.gpu.NewKVCache(spec); err != nil {
		p.Fatal(err)
	}
	spec.In = in.cpu
	if c, err = p.cpu.NewKVCache(spec); err != nil {
		p.Fatal(err)
	}
	return g, c
}

// TestAttentionReadsItsOwn: neither what lies in the cache where no token of a sequence is, nor another sequence of the step without numbers, reaches a result.
func TestAttentionReadsItsOwn(t *testing.T) {
	for _, c := range []Config{{Working: kernels.F32}, {Working: kernels.BF16}, {Working: kernels.BF16, NoWarpgroups: true}, {Working: kernels.BF16, BatchInvariant: true}} {
		for _, shape := range heads {
			for _, window := range []int{0, 5} {
				for name, seqs := range map[string][]seq{
					"prefill": {{1, 0, -1}, {70, 9, -1}, {17, 18, -1}, {40, 7, -1}, {5, 16, -1}},
					"short":   {{2, 30, -1}, {1, 3, -1}, {3, 1, -1}},
					"decode":  decodes(20, func(int) int { return -1 }),
				} {
					t.Run(fmt.Sprintf("%s/invariant=%v/warps=%v/%v/%d/%s", c.Working, c.BatchInvariant, c.NoWarpgroups, shape, window, name), func(t *testing.T) {
						newPair(t, c).own(seqs, shape, window)
					})
				}
			}
		}
	}
}

func (p *pair) own(seqs []seq, shape [3]int, window int) {
	p.Helper()
	const lost = 1 // the sequence without numbers: nothing is written to its blocks
	b := p.step(9, seqs...)
	hq, kv, d := shape[0], shape[1], shape[2]
	g, c := p.stale(b, kv, d)
	p.fillCache(seqs, b, g, c, hq, kv, d, lost)
	m := b.gpu.Bucket.Tokens
	q, o, lse := p.act(m, hq*d, p.normal(m*hq*d, 1)), p.garbage(m, hq*d), both{}
	if b.gpu.Bucket.MaxQuery > 1 {
		lse = p.f32(m, hq, nans(m*hq))
	}
	p.gpu.Attention(p.gpu.s, kernels.AttentionArgs{Out: o.gpu, Q: q.gpu, Cache: g, Layer: 1, Scale: 0.2, Window: window, LSE: lse.gpu}, b.gpu)
	p.cpu.Attention(p.cpu.s, kernels.AttentionArgs{Out: o.cpu, Q: q.cpu, Cache: c, Layer: 1, Scale: 0.2, Window: window, LSE: lse.cpu}, b.cpu)
	for name, x := range map[string]both{"attention": o, "log-sum-exp": lse} {
		if !x.gpu.Present() {
			continue
		}
		got, want := p.gpu.values(x.gpu), p.cpu.values(x.cpu)
		for i := range b.tokens() * x.gpu.Cols {
			row := i / x.gpu.Cols
			none := b.rec.Seq[row] == lost
			if diff := math.Abs(float64(got[i] - want[i])); none != (got[i] != got[i]) || none != (want[i] != want[i]) || !none && !(diff <= p.tol()*(1+math.Abs(float64(want[i])))) {
				p.Fatalf("%s[%d, %d] = %v, the oracle has %v", name, row, i%x.gpu.Cols, got[i], want[i])
			}
		}
	}
}

// TestAttentionAtAnyAddress: queries and outputs that lie off a multiple of 16 bytes, which not every kernel can take.
func TestAttentionAtAnyAddress(t *testing.T) {
	for _, seqs := range [][]seq{{{70, 9, -1}, {3, 0, -1}}, decodes(5, func(int) int { return -1 })} {
		for off := range 2 { // of the queries, or of the outputs
			p := newPair(t, Config{Working: kernels.BF16})
			b := p.step(9, seqs...)
			const hq, kv, d = 8, 2, 64
			g, c := p.cache(b, kv, d)
			p.fillCache(seqs, b, g, c, hq, kv, d, -1)
			m := b.gpu.Bucket.Tokens
			q, o := p.act(m, hq*d, p.normal(m*hq*d, 1)), p.garbage(m, hq*d)
			wide := p.gpu.tensor(kernels.BF16, m, hq*d+8, nans(m*(hq*d+8))).ColRange(1, hq*d+1)
			if off == 0 {
				p.gpu.Copy(p.gpu.s, wide, q.gpu)
				q.gpu = wide
			}
			out := o.gpu
			if off == 1 {
				out = wide
			}
			p.gpu.Attention(p.gpu.s, kernels.AttentionArgs{Out: out, Q: q.gpu, Cache: g, Layer: 1, Scale: 0.2}, b.gpu)
			p.cpu.Attention(p.cpu.s, kernels.AttentionArgs{Out: o.cpu, Q: q.cpu, Cache: c, Layer: 1, Scale: 0.2}, b.cpu)
			if off == 1 {
				p.gpu.Copy(p.gpu.s, o.gpu, out)
			}
			p.same("attention", o, b.tokens(), p.tol())
		}
	}
}

// TestMisplacedPanics: memory of which kernels read 16 bytes at a time and which does not begin at a multiple of that is a bug of the caller.
func TestMisplacedPanics(t *testing.T) {
	p := newPair(t, Config{Working: kernels.BF16})
	off := p.gpu.tensor(kernels.BF16, 1, 4097, make([]float32, 4097)).ColRange(1, 4097)
	logits := p.gpu.tensor(kernels.F32, 1, 33, make([]float32, 33)).ColRange(1, 33)
	table, err := p.gpu.NewAdapterTable(1)
	if err != nil {
		t.Fatal(err)
	}
	b := p.training(32, seq{3, 0, -1})
	w, x, nll := p.weight(32, 16, 0), p.garbage(5, 16), p.f32(1, 5, nans(5))
	for name, f := range map[string]func(){
		"an adapter": func() { p.gpu.SetAdapter(p.gpu.s, table, 0, off, 8) },
		"a cache": func() {
			p.gpu.NewKVCache(kernels.KVSpec{Layers: 1, Blocks: 1, BlockTokens: 16, KVHeads: 1, HeadDim: 64, In: off})
		},
		"logits of a loss": func() { p.gpu.CrossEntropy(p.gpu.s, nll.gpu, x.gpu, x.gpu, logits, w.gpu, 0, 3, b.gpu) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s off a multiple of 16 bytes is taken", name)
				}
			}()
			f()
		}()
	}
}
