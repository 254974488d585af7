//go:build cuda

package cuda

import (
	"fmt"
	"math"
	"slices"
	"testing"

	"bhive/kernels"
)

// TestSample: tokens, ranks and log-probabilities of both sides, over rows with every kind of parameter.
func TestSample(t *testing.T) {
	for _, v := range []int{99, 1000, 49152} {
		t.Run(fmt.Sprint(v), func(t *testing.T) {
			p := newPair(t, Config{Working: kernels.BF16})
			const rows = 48
			b := p.step(9, seq{rows, 0, -1})
			rec := b.rec
			n := b.gpu.Bucket.Rows
			raw := make([]float32, n*v)
			for i := range raw {
				raw[i] = float32(p.rng.NormFloat64() * 3)
				if i%v > 0 && p.rng.IntN(5) == 0 {
					raw[i] = raw[i-1] // ties
				}
			}
			counts, mask := make([]int32, n*v), make([]int32, n*((v+31)/32))
			ids, bias := make([]int32, n*8), make([]float32, n*8)
			for i := range counts {
				if p.rng.IntN(10) == 0 {
					counts[i] = int32(p.rng.IntN(3)) | int32(p.rng.IntN(2))*kernels.SeenInPrompt
				}
			}
			for i := range mask {
				mask[i] = int32(p.rng.Uint32())
			}
			for i := range ids {
				ids[i], bias[i] = int32(i%8*11), float32(p.rng.NormFloat64()*4)
				if i%8 > 4 {
					ids[i] = -1
				}
			}
			for i := range rows {
				rec.RowSampler[i], rec.RowForced[i] = int32(rows-1-i), -1
				rec.RowFlags[i] = int32(i % 16)
				rec.RowTopK[i] = []int32{0, 1, 5, 40, 200}[i%5]
				rec.RowTop[i] = []int32{0, 3, 20, 7}[i%4]
				rec.RowSeedLo[i], rec.RowSeedHi[i], rec.RowDraw[i] = int32(p.rng.Uint32()), int32(p.rng.Uint32()), int32(i*5)
				rec.RowTemperature[i] = kernels.Bits([]float32{1, 0.7, 1.5}[i%3])
				rec.RowTopP[i] = kernels.Bits([]float32{1, 0.9, 0.5, 1, 0.99, 0.01, 1}[i%7])
				rec.RowMinP[i] = kernels.Bits([]float32{0, 0.05, 0.3}[i/3%3])
				rec.RowRepetition[i], rec.RowPresence[i], rec.RowFrequency[i] = kernels.Bits(1.3), kernels.Bits(0.2), kernels.Bits(0.4)
			}
			rec.RowForced[3], rec.RowForced[17] = 11, 0
			p.sample(fmt.Sprintf("V %d", v), b, v, n, 0, sampleState{raw, bias, counts, mask, ids})
		})
	}
}

// sampleState is what rows are drawn from, by row.
type sampleState struct {
	logits, bias      []float32
	counts, mask, ids []int32 // 8 ids a row
}

// sample draws the step's rows on both sides and compares everything that comes of it. The device's logits lie off places after a multiple of 16 bytes.
func (p *pair) sample(name string, b *batch, v, rows, off int, of sampleState) {
	p.Helper()
	type result struct {
		token, rank, top, counts []int32
		logprob, toplp           []float32
	}
	p.upload(b)
	n, words, drawn := rows, (v+31)/32, int(b.rec.Head[kernels.HeadRows])
	var got [2]result
	for i, s := range []*side{p.gpu, p.cpu} {
		alloc := func(d kernels.DType, rows, cols int) kernels.Tensor {
			x, err := s.Alloc(d, rows, cols)
			if err != nil {
				p.Fatal(err)
			}
			return x
		}
		up := func(d kernels.DType, rows, cols int, src []byte) kernels.Tensor {
			x := alloc(d, rows, cols)
			s.Upload(s.s, x, src)
			s.sync()
			return x
		}
		out := kernels.Sampled{Token: alloc(kernels.I32, 1, n), Logprob: alloc(kernels.F32, 1, n), Rank: alloc(kernels.I32, 1, n),
			TopID: alloc(kernels.I32, n, kernels.MaxTopLogprobs), TopLogprob: alloc(kernels.F32, n, kernels.MaxTopLogprobs)}
		state := kernels.SamplerState{Counts: up(kernels.I32, n, v, bytesOf(of.counts)), BiasID: up(kernels.I32, n, 8, bytesOf(of.ids)),
			Bias: up(kernels.F32, n, 8, bytesOf(of.bias)), Mask: up(kernels.I32, n, words, bytesOf(of.mask))}
		logits, step := up(kernels.F32, n, v, bytesOf(of.logits)), b.gpu
		if i == 1 {
			step = b.cpu
		} else if off > 0 {
			view := alloc(kernels.F32, n, v+4).ColRange(off, off+v)
			s.Copy(s.s, view, logits)
			logits = view
		}
		s.Sample(s.s, out, logits, state, step)
		got[i] = result{s.ints(out.Token)[:drawn], s.ints(out.Rank)[:drawn], s.ints(out.TopID)[:drawn*kernels.MaxTopLogprobs], s.ints(state.Counts),
			s.values(out.Logprob)[:drawn], s.values(out.TopLogprob)[:drawn*kernels.MaxTopLogprobs]}
	}
	same := func(a, b float32) bool { return a == b || a != a && b != b || math.Abs(float64(a-b)) < 1e-4 } // infinities and NaNs too
	g, w := got[0], got[1]
	for i := range drawn {
		if g.token[i] != w.token[i] || g.rank[i] != w.rank[i] {
			p.Errorf("%s, row %d (flags %d, top-k %d, top-p %v, min-p %v): token %d of rank %d, the oracle draws %d of rank %d", name, i, b.rec.RowFlags[i], b.rec.RowTopK[i],
				kernels.Float(b.rec.RowTopP[i]), kernels.Float(b.rec.RowMinP[i]), g.token[i], g.rank[i], w.token[i], w.rank[i])
		}
		if !same(g.logprob[i], w.logprob[i]) {
			p.Errorf("%s, row %d: log-probability %v, the oracle has %v", name, i, g.logprob[i], w.logprob[i])
		}
	}
	if !slices.Equal(g.top, w.top) {
		p.Errorf("%s: top tokens differ: %v, the oracle has %v", name, g.top, w.top)
	}
	for i := range g.toplp {
		if !same(g.toplp[i], w.toplp[i]) {
			p.Fatalf("%s: top log-probability %d is %v, the oracle has %v", name, i, g.toplp[i], w.toplp[i])
		}
	}
	if !slices.Equal(g.counts, w.counts) {
		p.Errorf("%s: counts differ", name)
	}
}

// TestSampleExtremes: infinities, logits beside which noise is lost, and what is no number, however a row is drawn; from logits at any address.
func TestSampleExtremes(t *testing.T) {
	inf, nan := float32(math.Inf(1)), float32(math.NaN())
	p := newPair(t, Config{Working: kernels.BF16})
	for _, v := range []int{99, 1000} {
		for _, c := range []struct {
			name string
			set  map[int]float32
			all  float32 // the others
		}{
			{"one +Inf", map[int]float32{40: inf}, 0},
			{"two of one thread", map[int]float32{40: inf, 43: inf}, 0},
			{"two of two threads", map[int]float32{40: inf, 97: inf}, 0},
			{"both infinities", map[int]float32{3: -inf, 7: inf, 98: -inf}, 0},
			{"the greatest numbers", map[int]float32{33: math.MaxFloat32, 35: math.MaxFloat32}, 0},
			{"noise is lost", map[int]float32{33: 1e12, 35: 1e12, 36: 1e11}, 0},
			{"noise is half lost", map[int]float32{33: 1 << 28, 35: 1<<28 - 16}, 0},
			{"a penalty divides beyond the numbers", map[int]float32{1: 1, 2: 1}, 0},
			{"nothing above −Inf", nil, -inf},
			{"one above −Inf", map[int]float32{60: -5}, -inf},
			{"NaN", map[int]float32{50: nan}, 0},
			{"NaN with a sign", map[int]float32{50: float32(math.Copysign(float64(nan), -1)), 51: inf}, 0},
			{"NaN in every place", nil, nan},
		} {
			const rows = 7
			b := p.step(9, seq{rows, 0, -1})
			rec, n, words := b.rec, b.gpu.Bucket.Rows, (v+31)/32
			of := sampleState{make([]float32, n*v), make([]float32, n*8), make([]int32, n*v), make([]int32, n*words), make([]int32, n*8)}
			for i := range of.mask {
				of.mask[i] = -1
			}
			for i := range of.ids {
				of.ids[i] = -1
			}
			for i := range n {
				for j := range v {
					of.logits[i*v+j] = c.all
				}
				for id, x := range c.set {
					of.logits[i*v+id] = x
				}
				of.counts[i*v+1], of.counts[i*v+2] = kernels.SeenInPrompt, kernels.SeenInPrompt|1
			}
			of.mask[6*words+40/32] &^= 1 << (40 % 32) // row 6 may not draw token 40
			for i := range rows {
				rec.RowForced[i], rec.RowSampler[i], rec.RowTop[i], rec.RowDraw[i], rec.RowSeedLo[i] = -1, int32(i), 4, int32(i), 77
				rec.RowFlags[i] = []int32{0, kernels.RowGreedy, kernels.RowPenalties, kernels.RowPenalties | kernels.RowGreedy, 0, 0, kernels.RowMask}[i]
				rec.RowTemperature[i] = kernels.Bits([]float32{1, 1, 1, 1, 1e-5, 10, 1}[i])
				rec.RowTopP[i], rec.RowRepetition[i] = kernels.Bits([]float32{1, 1, 0.9, 1, 0.5, 1, 1}[i]), kernels.Bits(1e-40)
				rec.RowTopK[i], rec.RowMinP[i] = []int32{0, 0, 0, 0, 0, 5, 0}[i], kernels.Bits([]float32{0, 0, 0, 0, 0, 0.1, 0}[i])
			}
			for off := range 2 {
				p.sample(fmt.Sprintf("V %d, %s, %d places on", v, c.name, off), b, v, n, off, of)
			}
			rec.RowForced[0], rec.RowForced[1] = 5, 40
			p.sample(fmt.Sprintf("V %d, %s, forced", v, c.name), b, v, n, 0, of)
		}
	}
}
