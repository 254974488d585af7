package infer

import (
	"context"
	"errors"
	"math"
	"slices"
	"testing"

	"bhive/adapters"
	"bhive/kernels"
)

// TestCalibrate holds the moments of the first site, whose input is known without a forward pass, against a direct sum, and groups of
// one layer against all layers at once.
func TestCalibrate(t *testing.T) {
	m := tinyModel(t, "llama", kernels.F32, kernels.FormatF32)
	cp := openCheckpoint(t, "testdata/tiny/llama")
	sequences := [][]int32{randomTokens(30, m.Config.Vocab, 1), randomTokens(3, m.Config.Vocab, 2), randomTokens(300, m.Config.Vocab, 3)[:200]}
	cov, err := Calibrate(context.Background(), m, sequences, CalibrateConfig{})
	if err != nil {
		t.Fatal(err)
	}
	embed, _ := cp.Tensor("model.embed_tokens.weight")
	norm, _ := cp.Tensor("model.layers.0.input_layernorm.weight")
	everything, err := Calibrate(context.Background(), m, sequences, CalibrateConfig{Skip: -1})
	if err != nil {
		t.Fatal(err)
	}
	h := m.Config.Hidden
	for skip, cov := range map[int]func(int, adapters.Site) []float64{4: cov, 0: everything} {
		want := make([]float64, h*h)
		x, w := make([]float32, h), norm.Float32s()
		count := 0.0
		for _, ids := range sequences {
			for i, id := range ids {
				if i < skip {
					continue
				}
				embed.Row(int(id), x)
				sum := 0.0
				for _, v := range x {
					sum += float64(v) * float64(v)
				}
				scale := 1 / math.Sqrt(sum/float64(h)+m.Config.NormEps)
				for a := range h {
					for b := range h {
						want[a*h+b] += float64(x[a]*w[a]) * scale * float64(x[b]*w[b]) * scale
					}
				}
				count++
			}
		}
		got := cov(0, adapters.AttnIn)
		for i := range want {
			want[i] /= count
		}
		top := slices.Max(want)
		for i := range want {
			if math.Abs(got[i]-want[i]) > 1e-5*top {
				t.Fatalf("%d tokens left out: moment %d is %g, want %g", skip, i, got[i], want[i])
			}
		}
	}
	grouped, err := Calibrate(context.Background(), m, sequences, CalibrateConfig{Bytes: 1})
	if err != nil {
		t.Fatal(err)
	}
	for l := range m.Config.Layers {
		for site := adapters.AttnIn; site < adapters.NumSites; site++ {
			a, b, n := cov(l, site), grouped(l, site), m.Geometry.In(site)
			if len(a) != n*n || !slices.Equal(a, b) {
				t.Errorf("layer %d, %v: groups of layers change the moments", l, site)
			}
			for i := range n {
				if !(a[i*n+i] > 0) {
					t.Fatalf("layer %d, %v: variance %g of input %d", l, site, a[i*n+i], i)
				}
			}
		}
	}
	if _, err := Calibrate(context.Background(), m, [][]int32{{1, 2, 3, 4}}, CalibrateConfig{}); !errors.Is(err, ErrCalibration) {
		t.Errorf("four tokens: error %v", err)
	}
	if n := len(CalibrationTexts()); n < 100 {
		t.Errorf("%d calibration texts", n)
	}
}

// TestNLL holds the loss over labels against the logits.
func TestNLL(t *testing.T) {
	m := tinyModel(t, "qwen2-yarn", kernels.F32, kernels.FormatF32)
	s := newScorer(t, m, ScorerConfig{Chunk: 16})
	if err := s.SetAdapter(0, randomWeights(m.Geometry, 8, 1)); err != nil {
		t.Fatal(err)
	}
	var seqs []Sequence
	for i := range 3 {
		ids := randomTokens(20+10*i, m.Config.Vocab, uint64(i))
		labels := append(slices.Clone(ids[1:]), -1)
		labels[2] = -1
		seqs = append(seqs, Sequence{Tokens: ids, Adapter: i%2 - 1, Labels: labels})
	}
	want := make([]Loss, len(seqs))
	if err := s.Logits(context.Background(), seqs, func(i, p int, logits []float32) {
		if label := seqs[i].Labels[p]; label >= 0 {
			want[i].Sum += logSumExp(logits) - float64(logits[label])
			want[i].Tokens++
		}
	}); err != nil {
		t.Fatal(err)
	}
	got, err := s.NLL(context.Background(), seqs)
	if err != nil {
		t.Fatal(err)
	}
	for i := range got {
		if got[i].Tokens != want[i].Tokens || math.Abs(got[i].Mean()-want[i].Mean()) > 1e-4 {
			t.Errorf("sequence %d: %+v, want %+v", i, got[i], want[i])
		}
	}
	if _, err := s.NLL(context.Background(), []Sequence{{Tokens: make([]int32, 5000), Adapter: -1}}); !errors.Is(err, ErrSequenceTooLong) {
		t.Errorf("5000 tokens: error %v", err)
	}
}
