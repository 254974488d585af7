package finetune

import (
	"context"
	"testing"

	"bhive/adapters"
	"bhive/infer"
	"bhive/infer/checkpoint"
	"bhive/infer/demo"
	"bhive/infer/goldentest"
	"bhive/kernels"
	"bhive/kernels/devicetest"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func openDevice(t testing.TB, invariant bool) kernels.Backend {
	t.Helper()
	return devicetest.Open(t, invariant)
}

func rounds() bool { return devicetest.Rounds() }

// format of the base's weights on the device under test.
func format() kernels.Format { return devicetest.Format() }

func openDemo(t testing.TB) *checkpoint.Checkpoint {
	t.Helper()
	cp, err := checkpoint.OpenFS(demo.FS())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cp.Close() })
	return cp
}

func load(t testing.TB, be kernels.Backend, cp *checkpoint.Checkpoint, basis *adapters.Basis, format kernels.Format) *infer.Model {
	t.Helper()
	c := infer.LoadConfig{Format: format}
	if basis != nil {
		c.BaseHash = basis.BaseHash
	}
	m, err := infer.Load(context.Background(), be, cp, basis, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	return m
}

func demoModel(t testing.TB, rows int) *infer.Model {
	t.Helper()
	cp := openDemo(t)
	hash := infer.BaseHash(cp)
	basis, err := adapters.NewBasis(context.Background(), adapters.BasisConfig{Method: adapters.Orthonormal, R: rows, Geometry: geometry(cp.Config()), BaseHash: hash})
	if err != nil {
		t.Fatal(err)
	}
	return load(t, openDevice(t, true), cp, basis, format())
}

func geometry(c checkpoint.Config) adapters.Geometry {
	return adapters.Geometry{Layers: c.Layers, Hidden: c.Hidden, QDim: c.Heads * c.HeadDim, KVDim: c.KVHeads * c.HeadDim, FeedForward: c.FeedForward}
}

func demoEncoder(t testing.TB) Encoder { t.Helper(); return encoderOf(t, openDemo(t)) }

// encoderOf is the encoder of a checkpoint's own tokenizer and template.
func encoderOf(t testing.TB, cp *checkpoint.Checkpoint) Encoder {
	t.Helper()
	tok, tmpl, err := infer.LoadText(cp, nil)
	if err != nil {
		t.Fatal(err)
	}
	return NewEncoder(tok, tmpl, cp.Config().EOS)
}

// goldenExamples are a folder's, their labels shifted.
func goldenExamples(t testing.TB, dir string) (out []Example) {
	t.Helper()
	for _, e := range goldentest.Examples(t, dir) {
		trained := make([]bool, len(e.IDs))
		for i, l := range e.Labels {
			trained[i] = l >= 0
		}
		out = append(out, newExample(e.IDs, trained))
	}
	return out
}

// goldenRun is one run of train.json.
type goldenRun goldentest.Run

func (g goldenRun) options(examples []Example) LaneOptions {
	kind, warmup := ScheduleConstant, goldentest.Run(g).Warmup()
	if warmup > 0 {
		kind = ScheduleCosine
	}
	o := LaneOptions{Rank: g.Rank, Alpha: g.Alpha, Train: examples, Batching: Batching{Examples: g.Batch / g.MicroBatches, Batches: g.MicroBatches},
		Schedule: Schedule{Kind: kind, Rate: g.LR, Warmup: warmup, Steps: g.Steps}, Beta1: g.Betas[0], Beta2: g.Betas[1], Epsilon: g.Eps,
		Decay: g.WeightDecay, Correction: g.Correction, InOrder: true}
	if g.MaxGradNorm != nil {
		o.Clip = *g.MaxGradNorm
	}
	return o
}

// runUnits runs a trainer until nothing is left to do.
func runUnits(t testing.TB, tr *Trainer) {
	t.Helper()
	for {
		more, err := tr.Unit()
		if err != nil {
			t.Fatal(err)
		}
		if !more {
			return
		}
	}
}

func newTrainer(t testing.TB, m *infer.Model, c TrainerConfig) *Trainer {
	t.Helper()
	tr, err := NewTrainer(m, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tr.Close)
	return tr
}

func addLane(t testing.TB, tr *Trainer, o LaneOptions) *Lane {
	t.Helper()
	l, err := tr.Add(o)
	if err != nil {
		t.Fatal(err)
	}
	return l
}
