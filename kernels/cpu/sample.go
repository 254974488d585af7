package cpu

import (
	"math"

	"bhive/kernels"
)

type sampleTask struct {
	b      *Backend
	logits mat
	out    kernels.Sampled
	state  kernels.SamplerState
	r      *kernels.Record
}

// Sample draws a token for each row of logits, and writes its log-probability and rank in the model's own distribution and
// the top log-probabilities wanted; places past those hold −1 and −Inf.
func (b *Backend) Sample(s kernels.Stream, out kernels.Sampled, logits kernels.Tensor, state kernels.SamplerState, step kernels.Step) {
	l := matrix(logits, step.Bucket.Rows, logits.Cols, "sample: logits")
	if g := recording(s); g != nil {
		out, state := out, state
		g.add(func() { b.runSample(l, out, state, step) })
		return
	}
	b.runSample(l, out, state, step)
}

func (b *Backend) runSample(logits mat, out kernels.Sampled, state kernels.SamplerState, step kernels.Step) {
	b.sample = sampleTask{b, logits, out, state, b.record(step)}
	b.pool.run(taskSample, int(b.sample.r.Head[kernels.HeadRows]))
}

var negInf = float32(math.Inf(-1))

// bounded takes +Inf for the greatest number: the difference of two is then one too.
func bounded(x float32) float32 { return min(x, math.MaxFloat32) }

func (t *sampleTask) part(worker, i int) {
	s := &t.b.scratch[worker]
	raw := t.logits.row(i)
	token, rank, lse := t.r.RowForced[i], int32(1), bounded(logSumExp(t.b.k, raw))
	if sum := t.b.k.SumSquares(raw); sum != sum || lse == negInf { // one of them is no number, or all are −Inf
		t.top(s, i, nil, lse)
		ints(t.out.Token, "sample: tokens")[i], ints(t.out.Rank, "sample: ranks")[i] = -1, rank
		elements[float32](t.out.Logprob, kernels.F32, "sample: logprobs")[i] = float32(math.NaN())
		return
	}
	t.top(s, i, raw, lse)
	if token < 0 {
		token = t.draw(s, i, raw)
	}
	if t.r.RowFlags[i]&kernels.RowPenalties != 0 {
		t.counts(i)[token]++
	}
	ints(t.out.Token, "sample: tokens")[i] = token
	at := raw[token]
	elements[float32](t.out.Logprob, kernels.F32, "sample: logprobs")[i] = bounded(at) - lse
	for j, v := range raw {
		if v > at || v == at && int32(j) < token {
			rank++
		}
	}
	ints(t.out.Rank, "sample: ranks")[i] = rank
}

// top writes the row's top log-probabilities, ties in order of id.
func (t *sampleTask) top(s *scratch, i int, raw []float32, lse float32) {
	ids := ints(t.out.TopID, "sample: top ids")[i*t.out.TopID.Stride:][:kernels.MaxTopLogprobs]
	lps := elements[float32](t.out.TopLogprob, kernels.F32, "sample: top logprobs")[i*t.out.TopLogprob.Stride:][:kernels.MaxTopLogprobs]
	n := min(int(t.r.RowTop[i]), kernels.MaxTopLogprobs)
	best := greatest(raw, negInf, n, grown(&s.ids, len(raw)))
	for j := range ids {
		ids[j], lps[j] = -1, negInf
		if j < len(best) {
			ids[j], lps[j] = best[j], bounded(raw[best[j]])-lse
		}
	}
}

func (t *sampleTask) counts(i int) []int32 {
	c := t.state.Counts
	return ints(c, "sample: counts")[int(t.r.RowSampler[i])*c.Stride:][:c.Cols]
}

// draw chooses row i's token. raw is left as it is.
func (t *sampleTask) draw(s *scratch, i int, raw []float32) int32 {
	flags := t.r.RowFlags[i]
	if flags&(kernels.RowPenalties|kernels.RowBias|kernels.RowMask) == 0 && flags&kernels.RowGreedy != 0 {
		return int32(t.b.k.ArgMax(raw))
	}
	x := grown(&s.a, len(raw))
	copy(x, raw)
	if flags&kernels.RowPenalties != 0 {
		t.penalize(i, x)
	}
	if flags&kernels.RowBias != 0 {
		at := int(t.r.RowSampler[i])
		ids := ints(t.state.BiasID, "sample: bias ids")[at*t.state.BiasID.Stride:][:t.state.BiasID.Cols]
		bias := elements[float32](t.state.Bias, kernels.F32, "sample: bias")[at*t.state.Bias.Stride:][:t.state.Bias.Cols]
		for j, id := range ids {
			if id >= 0 {
				x[id] += bias[j]
			}
		}
	}
	if flags&kernels.RowMask != 0 {
		mask := ints(t.state.Mask, "sample: mask")[int(t.r.RowSampler[i])*t.state.Mask.Stride:][:t.state.Mask.Cols]
		for j := range x {
			if mask[j/32]>>(j%32)&1 == 0 {
				x[j] = negInf
			}
		}
	}
	if flags&kernels.RowGreedy != 0 {
		return int32(t.b.k.ArgMax(x))
	}
	t.b.k.Scale(x, 1/kernels.Float(t.r.RowTemperature[i]))
	d := race{seed: uint64(uint32(t.r.RowSeedLo[i])) | uint64(uint32(t.r.RowSeedHi[i]))<<32, draw: uint32(t.r.RowDraw[i])}
	return d.run(t.b.k, s, x, kernels.Float(t.r.RowMinP[i]), int(t.r.RowTopK[i]), kernels.Float(t.r.RowTopP[i]))
}

// penalize applies the repetition penalty to tokens of the prompt and of the output, the others to the output's.
func (t *sampleTask) penalize(i int, x []float32) {
	repetition := kernels.Float(t.r.RowRepetition[i])
	presence, frequency := kernels.Float(t.r.RowPresence[i]), kernels.Float(t.r.RowFrequency[i])
	for j, c := range t.counts(i) {
		if c == 0 {
			continue
		}
		if x[j] > 0 {
			x[j] /= repetition
		} else {
			x[j] *= repetition
		}
		if n := c &^ kernels.SeenInPrompt; n > 0 {
			x[j] -= frequency*float32(n) + presence
		}
	}
}
