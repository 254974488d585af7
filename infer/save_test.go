package infer

import (
	"bytes"
	"encoding/binary"
	"testing"

	"bhive/kernels"
)

// TestSave: keeping what a backward reads changes nothing of the forward pass, and a recomputed layer is the layer that was not kept. Where a saved
// forward carries the residual stream's rounding, which serving drops, it is the same pass to what bfloat16 explains, and the plans' are one to the bit.
func TestSave(t *testing.T) {
	for _, f := range forms {
		t.Run(f.name, func(t *testing.T) {
			const name = "qwen3"
			m := tinyModel(t, name, f.working, f.format)
			s := newScorer(t, m, ScorerConfig{Tokens: 50})
			if err := s.SetAdapter(0, randomWeights(m.Geometry, 8, 1)); err != nil {
				t.Fatal(err)
			}
			sc := s.trainStep([]StepSeq{
				{Tokens: randomTokens(30, m.Config.Vocab, 1), Blocks: []int32{0, 1}, Adapter: 0, Lane: -1},
				{Tokens: randomTokens(20, m.Config.Vocab, 2), Blocks: []int32{2, 3}, Adapter: -1, Lane: -1},
			})
			forward := func(st *State, sc StepContext, save *Save) []byte {
				m.EmbedTokens(s.stream, st, sc, save)
				m.Forward(s.stream, st, sc, 0, 1, save)
				m.Forward(s.stream, st, sc, 1, len(m.Layers), save)
				return tensorBytes(s, st.Normed)
			}
			want := forward(s.state, sc, nil)
			var kept *Training
			for i := range SavePlans {
				plan := SavePlan(i)
				tr, err := NewTraining(m, TrainingConfig{Plan: plan, Tokens: 50, BlockTokens: s.config.BlockTokens, Blocks: 4, SampleTokens: 1, SampleRows: 1, SampleBlocks: 1})
				if err != nil {
					t.Fatal(err)
				}
				defer tr.Close()
				sc := sc
				sc.Cache = tr.Cache
				got := forward(tr.State, sc, tr.Save)
				if plan == RecomputeNone && tr.Save.Carry.Present() {
					// Emulated in torch over this model and forty prompts, passes with and without the carry are at most 0.022 apart.
					most := tinyTolerance(name, m.Config.Layers)
					if d := worstRow(got, want, m.Config.Hidden); !(d > 0 && d <= most) {
						t.Errorf("a pass that carries roundings is %.2g of (max − min) off, and may be %.2g", d, most)
					}
					want = got
				}
				if !bytes.Equal(got, want) {
					t.Errorf("plan %v changes the forward pass", plan)
				}
				if plan == RecomputeNone {
					kept = tr
					continue
				}
				for l := len(m.Layers) - 1; l >= 0; l-- {
					for part := range Parts {
						if tr.Save.Plan.Recomputes(part) {
							m.Recompute(s.stream, tr.State, sc, l, part, tr.Save)
						}
					}
					a, b := &kept.Save.Layers[l], &tr.Save.Layers[l]
					pairs := map[string][2]kernels.Tensor{
						"SumIn": {a.SumIn, b.SumIn}, "RstdIn": {a.RstdIn, b.RstdIn}, "ZAttnIn": {a.ZAttnIn, b.ZAttnIn}, "Pre": {a.Pre, b.Pre},
						"Q": {a.Q, b.Q}, "O": {a.O, b.O}, "LSE": {a.LSE, b.LSE}, "ZAttnOut": {a.ZAttnOut, b.ZAttnOut}, "SumMid": {a.SumMid, b.SumMid},
						"RstdMid": {a.RstdMid, b.RstdMid}, "GateUp": {a.GateUp, b.GateUp}, "ZMLPDown": {a.ZMLPDown, b.ZMLPDown},
						"K": {keys(kept.kv, 2*l), keys(tr.kv, 2*sc.CacheLayer(l))}, "V": {keys(kept.kv, 2*l+1), keys(tr.kv, 2*sc.CacheLayer(l)+1)},
					}
					if l == 0 {
						delete(pairs, "SumIn") // no backward reads it
					}
					for name, pair := range pairs {
						x, y := tensorBytes(s, pair[0]), tensorBytes(s, pair[1])
						if !bytes.Equal(x, y) {
							t.Errorf("plan %v, layer %d: %s differs when recomputed", plan, l, name)
						}
						if bytes.Equal(x, make([]byte, len(x))) {
							t.Errorf("plan %v, layer %d: %s was not written", plan, l, name)
						}
					}
				}
			}
		})
	}
}

// worstRow is the largest difference of two tensors in bfloat16, by rows.
func worstRow(got, want []byte, cols int) (worst float64) {
	wide := func(b []byte) []float32 {
		row := make([]float32, cols)
		bits := make([]uint16, cols)
		for i := range bits {
			bits[i] = binary.LittleEndian.Uint16(b[2*i:])
		}
		bf16Matrix{1, cols, bits}.Row(0, row)
		return row
	}
	for at := 0; at < len(want); at += 2 * cols {
		worst = worse(worst, difference(wide(got[at:]), wide(want[at:])))
	}
	return worst
}

// keys is the i-th K or V of a cache's layers, of the first sequence's tokens.
func keys(s kernels.KVSpec, i int) kernels.Tensor {
	from, width := i*s.Blocks*s.BlockTokens*s.KVHeads*s.HeadDim, s.KVHeads*s.HeadDim
	return s.In.ColRange(from, from+30*width)
}

func tensorBytes(s *Scorer, x kernels.Tensor) []byte {
	b := make([]byte, x.Elements()*int64(x.DType.Size()))
	s.m.Backend.Download(s.stream, b, x)
	return b
}
