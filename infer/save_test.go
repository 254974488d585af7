package infer

import (
	"bytes"
	"testing"

	"bhive/kernels"
)

// TestSave: keeping what a backward reads changes nothing of the forward pass, and a recomputed layer is the layer that was not kept.
func TestSave(t *testing.T) {
	for _, f := range forms {
		t.Run(f.name, func(t *testing.T) {
			m := tinyModel(t, "qwen3", f.working, f.format)
			s := newScorer(t, m, ScorerConfig{Tokens: 50})
			if err := s.SetAdapter(0, randomWeights(m.Geometry, 8, 1)); err != nil {
				t.Fatal(err)
			}
			sc := s.trainStep([]StepSeq{
				{Tokens: randomTokens(30, m.Config.Vocab, 1), Blocks: []int32{0, 1}, Adapter: 0, Lane: -1},
				{Tokens: randomTokens(20, m.Config.Vocab, 2), Blocks: []int32{2, 3}, Adapter: -1, Lane: -1},
			})
			forward := func(save *Save) []byte {
				m.EmbedTokens(s.stream, s.state, sc, save)
				m.Forward(s.stream, s.state, sc, 0, 1, save)
				m.Forward(s.stream, s.state, sc, 1, len(m.Layers), save)
				return tensorBytes(s, s.state.Normed)
			}
			plain := forward(nil)
			saves := make([]*Save, len(SavePlans))
			for i := range saves {
				free, plan := m.Backend.Info().MemoryFree, SavePlan(i)
				var err error
				if saves[i], err = NewSave(m, 50, plan); err != nil {
					t.Fatal(err)
				}
				defer saves[i].Close()
				if took, want := free-m.Backend.Info().MemoryFree, SaveBytes(m, 50, plan); *device == "cpu" && took != want {
					t.Errorf("plan %v takes %d bytes, SaveBytes has %d", plan, took, want)
				}
				if i > 0 && SaveBytes(m, 50, plan) >= SaveBytes(m, 50, plan-1) {
					t.Errorf("plan %v takes no less memory than %v", plan, plan-1)
				}
				if !bytes.Equal(forward(saves[i]), plain) {
					t.Errorf("plan %v changes the forward pass", plan)
				}
			}
			for _, again := range saves[1:] {
				for l := len(m.Layers) - 1; l >= 0; l-- {
					m.Recompute(s.stream, s.state, sc, l, again)
					a, b := &saves[0].Layers[l], &again.Layers[l]
					for name, pair := range map[string][2]kernels.Tensor{
						"SumIn": {a.SumIn, b.SumIn}, "RstdIn": {a.RstdIn, b.RstdIn}, "ZAttnIn": {a.ZAttnIn, b.ZAttnIn}, "Pre": {a.Pre, b.Pre},
						"Q": {a.Q, b.Q}, "O": {a.O, b.O}, "LSE": {a.LSE, b.LSE}, "ZAttnOut": {a.ZAttnOut, b.ZAttnOut}, "SumMid": {a.SumMid, b.SumMid},
						"RstdMid": {a.RstdMid, b.RstdMid}, "ZMLPIn": {a.ZMLPIn, b.ZMLPIn}, "GateUp": {a.GateUp, b.GateUp}, "ZMLPDown": {a.ZMLPDown, b.ZMLPDown},
					} {
						x, y := tensorBytes(s, pair[0]), tensorBytes(s, pair[1])
						if !bytes.Equal(x, y) {
							t.Errorf("plan %v, layer %d: %s differs when recomputed", again.Plan, l, name)
						}
						if bytes.Equal(x, make([]byte, len(x))) {
							t.Errorf("plan %v, layer %d: %s was not written", again.Plan, l, name)
						}
					}
				}
			}
		})
	}
}

func tensorBytes(s *Scorer, x kernels.Tensor) []byte {
	b := make([]byte, x.Elements()*int64(x.DType.Size()))
	s.m.Backend.Download(s.stream, b, x)
	return b
}
