//go:build cuda

package cuda

import (
	"fmt"
	"slices"
	"testing"

	"bhive/kernels"
)

// decodeRanks are the ranks of 12 adapters, for an A of 64 rows.
var decodeRanks = []int{8, 16, 16, 64, 8, 16, 40, 64, 3, 16, 32, 24}

// decodePopularities say which adapter the i-th of n tokens has.
var decodePopularities = []struct {
	name string
	slot func(i, n int) int
}{
	{"none", func(int, int) int { return -1 }},
	{"one of rank 8", func(int, int) int { return 0 }},
	{"one of rank 16", func(int, int) int { return 1 }},
	{"one of rank 64", func(int, int) int { return 3 }},
	{"one of rank 3", func(int, int) int { return 8 }},
	{"sorted", func(i, n int) int { return i * 12 / n }},
	{"in turns", func(i, _ int) int { return i % 12 }},
	{"low ranks in turns", func(i, _ int) int { return []int{0, 1, 2, 4, 5, 9}[i%6] }},
	{"high ranks in turns", func(i, _ int) int { return []int{3, 6, 7}[i%3] }},
	{"some", func(i, _ int) int { return []int{-1, 1, 3, -1, 1, 10, 1, -1, 3}[i%9] }},
}

// epilogues are inputs of the epilogues for a decode of 8 query and 2 key heads of d values, on both sides.
type epilogues struct {
	*pair
	table                                 tables
	hidden, d                             int
	x, attnYZ, yz, gu, norm, bias, rope   both
	q, pre, out, normed, rstd, act, saved both
	gpuCache, cpuCache                    kernels.KVCache
}

const decodeR = 64

func (p *pair) epilogues(b *batch, h, d int) *epilogues {
	m, attn := b.gpu.Bucket.Tokens, 12*d
	e := &epilogues{pair: p, hidden: h, d: d, table: p.adapters(3+attn+2*h, decodeRanks...)}
	e.x, e.attnYZ = p.act(m, h, p.normal(m*h, 1)), p.act(m, attn+decodeR, p.normal(m*(attn+decodeR), 1))
	e.yz, e.gu = p.act(m, h+decodeR, p.normal(m*(h+decodeR), 1)), p.act(m, 2*h+decodeR, p.normal(m*(2*h+decodeR), 1))
	e.norm, e.bias, e.rope = p.f32(1, h, p.normal(h, 1)), p.f32(1, max(2*h, attn), p.normal(max(2*h, attn), 1)), p.rope(400, d)
	e.gpuCache, e.cpuCache = p.cache(b, 2, d)
	return e
}

// clear makes the outputs garbage.
func (e *epilogues) clear(b *batch) {
	m, h := b.gpu.Bucket.Tokens, e.hidden
	e.q, e.pre, e.out, e.normed, e.rstd = e.garbage(m, 8*e.d), e.garbage(m, 10*e.d), e.garbage(m, h), e.garbage(m, h), e.f32(1, m, nans(m))
	e.act, e.saved = e.pair.garbage(m, h), e.garbage(m, 2*h)
}

// run runs them on the device.
func (e *epilogues) run(s *side, cpu bool, b *batch) {
	pick := func(t both) kernels.Tensor {
		if cpu {
			return t.cpu
		}
		return t.gpu
	}
	step, table, cache := b.gpu, e.table.gpu, e.gpuCache
	if cpu {
		step, table, cache = b.cpu, e.table.cpu, e.cpuCache
	}
	attn, h := 12*e.d, e.hidden
	ref := func(out int) kernels.BRef { return kernels.BRef{Table: table, Offset: 3, Out: out} }
	bias := func(n int) kernels.Tensor { return pick(e.bias).ColRange(0, n) }
	s.QKV(s.s, kernels.QKVArgs{Q: pick(e.q), YZ: pick(e.attnYZ), Bias: bias(attn), Eps: 1e-5, Rope: pick(e.rope), Cache: cache, Layer: 1, B: ref(attn), Pre: pick(e.pre)}, step)
	s.ResidualNorm(s.s, kernels.ResidualNormArgs{Out: pick(e.out), Normed: pick(e.normed), X: pick(e.x), YZ: pick(e.yz), Bias: bias(h), Norm: pick(e.norm), Eps: 1e-5, B: ref(h), Rstd: pick(e.rstd)}, step)
	s.MLP(s.s, kernels.MLPArgs{Act: pick(e.act), YZ: pick(e.gu), Bias: bias(2 * h), B: ref(2 * h), GateUp: pick(e.saved)}, step)
}

// TestDecodeEpilogues: the epilogues of decodes against the oracle, by popularities and ranks.
func TestDecodeEpilogues(t *testing.T) {
	for _, n := range short([]int{1, 7, 8, 30, 62, 64, 126, 254}, []int{7, 62}) {
		for i, pop := range decodePopularities {
			t.Run(fmt.Sprintf("%d/%s", n, pop.name), func(t *testing.T) {
				h, d := 264, 64
				if i%2 == 1 {
					h, d = 4104, 128 // more than 512 threads of a residual
				}
				if n > 126 && h > 1000 {
					h = 1000
				}
				p := newPair(t, Config{Working: kernels.BF16})
				b := p.step(9, decodes(n, func(i int) int { return pop.slot(i, n) })...)
				e := p.epilogues(b, h, d)
				e.clear(b)
				e.run(p.gpu, false, b)
				e.run(p.cpu, true, b)
				for name, t := range map[string]both{"q": e.q, "pre": e.pre, "residual": e.out, "normed": e.normed, "act": e.act, "gate and up": e.saved} {
					p.same(name, t, n, p.tol())
				}
			})
		}
	}
}

// TestEpiloguesAlone: a token's bits are the same alone as in a step, whatever adapters are beside it; in batch-invariant mode in a step of any size.
func TestEpiloguesAlone(t *testing.T) {
	for _, invariant := range []bool{false, true} {
		for _, n := range short([]int{9, 64, 128, 300}, []int{9, 300}) {
			if n > 256 && !invariant {
				continue
			}
			for _, pop := range decodePopularities {
				t.Run(fmt.Sprintf("invariant=%v/%d/%s", invariant, n, pop.name), func(t *testing.T) {
					p := newPair(t, Config{Working: kernels.BF16, BatchInvariant: invariant})
					seqs := decodes(n, func(i int) int { return pop.slot(i, n) })
					b := p.step(9, seqs...)
					e := p.epilogues(b, 264, 64)
					e.clear(b)
					e.run(p.gpu, false, b)
					outputs := func() []both { return []both{e.q, e.pre, e.out, e.normed, e.act, e.saved} }
					var all [][]float32
					for _, o := range outputs() {
						all = append(all, p.gpu.values(o.gpu))
					}
					inputs := []*both{&e.x, &e.attnYZ, &e.yz, &e.gu}
					originals := make([]both, len(inputs))
					for i, in := range inputs {
						originals[i] = *in
					}
					for _, i := range []int{0, 3, n / 2, n - 2, n - 1} {
						one := p.step(9, seqs[i])
						for j, in := range inputs {
							in.gpu = p.gpu.tensor(p.dt, one.gpu.Bucket.Tokens, originals[j].gpu.Cols, nans(one.gpu.Bucket.Tokens*originals[j].gpu.Cols))
							p.gpu.Copy(p.gpu.s, in.gpu.RowRange(0, 1), originals[j].gpu.RowRange(i, i+1))
						}
						e.gpuCache, e.cpuCache = p.cache(one, 2, 64)
						e.clear(one)
						e.run(p.gpu, false, one)
						for j, o := range outputs() {
							got, cols := p.gpu.values(o.gpu)[:o.gpu.Cols], o.gpu.Cols
							if want := all[j][i*cols:][:cols]; !slices.Equal(got, want) {
								t.Fatalf("output %d of token %d is another alone", j, i)
							}
						}
					}
				})
			}
		}
	}
}
