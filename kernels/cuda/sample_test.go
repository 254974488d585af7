//go:build cuda

package cuda

import (
	"slices"
	"testing"

	"bhive/kernels"
)

// TestSample: tokens, ranks and log-probabilities of both sides, over rows with every kind of parameter.
func TestSample(t *testing.T) {
	for _, v := range []int{99, 1000, 49152} {
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
		p.upload(b)
		type result struct {
			token, rank, top, counts []int32
			logprob, toplp           []float32
		}
		var got [2]result
		for i, s := range []*side{p.gpu, p.cpu} {
			alloc := func(d kernels.DType, rows, cols int) kernels.Tensor {
				x, err := s.Alloc(d, rows, cols)
				if err != nil {
					t.Fatal(err)
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
			state := kernels.SamplerState{Counts: up(kernels.I32, n, v, bytesOf(counts)), BiasID: up(kernels.I32, n, 8, bytesOf(ids)),
				Bias: up(kernels.F32, n, 8, bytesOf(bias)), Mask: up(kernels.I32, n, (v+31)/32, bytesOf(mask))}
			logits := up(kernels.F32, n, v, bytesOf(raw))
			step := b.gpu
			if i == 1 {
				step = b.cpu
			}
			s.Sample(s.s, out, logits, state, step)
			got[i] = result{s.ints(out.Token)[:rows], s.ints(out.Rank)[:rows], s.ints(out.TopID)[:rows*kernels.MaxTopLogprobs], s.ints(state.Counts),
				s.values(out.Logprob)[:rows], s.values(out.TopLogprob)[:rows*kernels.MaxTopLogprobs]}
		}
		g, w := got[0], got[1]
		for i := range rows {
			if g.token[i] != w.token[i] || g.rank[i] != w.rank[i] {
				t.Errorf("V %d, row %d (flags %d, top-k %d, top-p %v, min-p %v): token %d of rank %d, the oracle draws %d of rank %d", v, i, rec.RowFlags[i], rec.RowTopK[i],
					kernels.Float(rec.RowTopP[i]), kernels.Float(rec.RowMinP[i]), g.token[i], g.rank[i], w.token[i], w.rank[i])
			}
			if d := g.logprob[i] - w.logprob[i]; !(d < 1e-4 && d > -1e-4) {
				t.Errorf("V %d, row %d: log-probability %v, the oracle has %v", v, i, g.logprob[i], w.logprob[i])
			}
		}
		if !slices.Equal(g.top, w.top) {
			t.Errorf("V %d: top tokens differ", v)
		}
		for i := range g.toplp {
			if d := g.toplp[i] - w.toplp[i]; d > 1e-4 || d < -1e-4 {
				t.Fatalf("V %d: top log-probability %d is %v, the oracle has %v", v, i, g.toplp[i], w.toplp[i])
			}
		}
		if !slices.Equal(g.counts, w.counts) {
			t.Errorf("V %d: counts differ", v)
		}
	}
}
