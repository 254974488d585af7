package finetune

import (
	"bytes"
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"bhive/adapters"
	"bhive/infer"
	"bhive/infer/checkpoint"
	"bhive/kernels"

	"github.com/google/go-cmp/cmp"
)

// tinyModel is a random model of two layers with everything that an architecture can have.
func tinyModel(t testing.TB, name string, rows int) *infer.Model {
	t.Helper()
	return tinyModelOn(t, openDevice(t, true), name, rows)
}

func tinyModelOn(t testing.TB, be kernels.Backend, name string, rows int) *infer.Model {
	t.Helper()
	cp, err := checkpoint.Open("../infer/testdata/tiny/" + name)
	if err != nil {
		t.Fatal(err)
	}
	defer cp.Close()
	hash := infer.BaseHash(cp)
	basis, err := adapters.NewBasis(context.Background(), adapters.BasisConfig{Method: adapters.Kaiming, Seed: 3, R: rows, Geometry: geometry(cp.Config()), BaseHash: hash})
	if err != nil {
		t.Fatal(err)
	}
	return load(t, be, cp, basis, format())
}

func randomExamples(seed uint64, n, vocab int) []Example {
	r := rand.New(rand.NewPCG(seed, 7))
	var out []Example
	for range n {
		ids := make([]int, 3+r.IntN(30))
		trained := make([]bool, len(ids))
		for i := range ids {
			ids[i], trained[i] = r.IntN(vocab), i == 1 || r.IntN(3) > 0
		}
		out = append(out, newExample(ids, trained))
	}
	return out
}

func randomStart(seed uint64, g adapters.Geometry, rank int, alpha, size float64) *adapters.Weights {
	r := rand.New(rand.NewPCG(seed, 11))
	w := adapters.NewWeights(g, rank, alpha)
	for i := range w.Data {
		w.Data[i] = float32(r.NormFloat64() * size)
	}
	return w
}

func laneOptions(m *infer.Model, seed uint64, rank, steps int) LaneOptions {
	return LaneOptions{Rank: rank, Alpha: 2 * float64(rank), Train: randomExamples(seed, 9, m.Config.Vocab), Held: randomExamples(seed+100, 3, m.Config.Vocab),
		Seed: int64(seed), Batching: Batching{Examples: 2 + int(seed%2), Batches: 1 + int(seed%3)}, EvalSteps: 2,
		Schedule: Schedule{Kind: ScheduleCosine, Rate: 1e-2, Warmup: 1, Steps: steps}, Beta1: 0.9, Beta2: 0.999, Epsilon: 1e-6, Decay: 0.01, Clip: 1,
		Correction: seed%2 == 0, KeepBest: true}
}

// state is everything of a lane that a resumed or accompanied run must reproduce, bit for bit.
func state(t testing.TB, l *Lane) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := l.Checkpoint().Encode(&b, "job"); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestGradientsAgainstFiniteDifferences(t *testing.T) {
	if rounds() {
		t.Skip("differences of rounded losses")
	}
	for _, name := range []string{"llama-bias", "qwen3", "mistral-window"} {
		for _, plan := range []string{"none", "layer"} {
			t.Run(name+"/"+plan, func(t *testing.T) {
				m := tinyModel(t, name, 8)
				tr := newTrainer(t, m, TrainerConfig{Lanes: 1, BatchTokens: 128, Seqs: 8, MemoryPlan: plan})
				const rank = 4
				o := LaneOptions{Rank: rank, Alpha: 6, Train: randomExamples(1, 3, m.Config.Vocab), Batching: Batching{Examples: 3, Batches: 1},
					Schedule: Schedule{Kind: ScheduleConstant, Rate: 1e-3, Steps: 1 << 30}, Beta1: 0.9, Beta2: 0.999, Epsilon: 1e-6,
					Start: randomStart(2, m.Geometry, rank, 6, 0.1)}
				l := addLane(t, tr, o)
				// loss runs an optimizer step's forward and backward by hand and leaves the gradient in the lane.
				loss := func() float64 {
					p := tr.compose()
					for p.stage != stageNorm {
						p.unit(tr)
					}
					nll := tr.downloadFloats(tr.nll)
					sum, n := 0.0, 0
					for i := range p.parts[0].to {
						if tr.train.rec.Label[i] >= 0 {
							sum += float64(nll[i])
							n++
						}
					}
					return sum / float64(n)
				}
				loss()
				grad := tr.downloadFloats(l.grad)
				r := rand.New(rand.NewPCG(5, 5))
				for layer := range m.Geometry.Layers {
					for proj := range adapters.NumProjs {
						// Along a random direction of this projection's B.
						from, n := rank*m.Geometry.OutOffset(layer, proj), rank*m.Geometry.Out(proj)
						dir := make([]float64, n)
						want := 0.0
						length := 0.0
						for i := range dir {
							dir[i] = r.NormFloat64() + 3*float64(grad[from+i])/(norm(grad[from:from+n], nil)+1e-12)*math.Sqrt(float64(n))
							length += dir[i] * dir[i]
						}
						for i := range dir {
							dir[i] /= math.Sqrt(length)
							want += dir[i] * float64(grad[from+i])
						}
						at := func(h float64) float64 {
							w := *o.Start
							w.Data = slices.Clone(w.Data)
							for i := range dir {
								w.Data[from+i] += float32(h * dir[i])
							}
							m.Backend.Upload(tr.stream, l.working, w.Pack(adapters.F32))
							return loss()
						}
						const h = 0.05
						d := func(h float64) float64 { return (at(h) - at(-h)) / (2 * h) }
						got := (4*d(h/2) - d(h)) / 3 // Richardson
						if math.Abs(got-want) > 2e-2*math.Abs(want)+2e-5 {
							t.Errorf("layer %d, %v: finite difference %g, gradient %g", layer, proj, got, want)
						}
					}
				}
			})
		}
	}
}

// TestTogetherAsAlone: several lanes in one batch come out as each alone, bit for bit.
func TestTogetherAsAlone(t *testing.T) {
	m := tinyModel(t, "llama-bias", 8)
	c := TrainerConfig{Lanes: 3, BatchTokens: 160, Seqs: 12}
	const lanes = 3
	options := func(i int) LaneOptions { return laneOptions(m, uint64(i), 2+3*i, 4+i) }
	var alone, together [lanes][]byte
	var reports [2][lanes][]Report
	for i := range lanes {
		tr := newTrainer(t, m, c)
		o := options(i)
		o.Report = func(r Report) { reports[0][i] = append(reports[0][i], r) }
		l := addLane(t, tr, o)
		runUnits(t, tr)
		alone[i] = state(t, l)
	}
	tr := newTrainer(t, m, c)
	var ls []*Lane
	shared := 0
	for i := range lanes {
		o := options(i)
		o.Report = func(r Report) { reports[1][i] = append(reports[1][i], r) }
		ls = append(ls, addLane(t, tr, o))
	}
	for {
		more, err := tr.Unit()
		if err != nil {
			t.Fatal(err)
		}
		if !more {
			break
		}
		if tr.pass != nil && len(tr.pass.parts) > 1 {
			shared++
		}
	}
	if shared == 0 {
		t.Error("no batch held several lanes")
	}
	for i, l := range ls {
		together[i] = state(t, l)
		if !bytes.Equal(alone[i], together[i]) {
			t.Errorf("lane %d is not as it is alone", i)
		}
	}
	if d := cmp.Diff(reports[0], reports[1]); d != "" {
		t.Errorf("reports (-alone +together):\n%s", d)
	}
	if bytes.Equal(alone[0], alone[1]) {
		t.Error("two different lanes are equal: the comparison cannot fail")
	}
}

// TestResume: a lane that goes on from a checkpoint, beside others and after leaving in mid-step, ends as an unbroken one.
func TestResume(t *testing.T) {
	m := tinyModel(t, "qwen3", 8)
	c := TrainerConfig{Lanes: 2, BatchTokens: 96, Seqs: 12}
	const steps = 6
	o := laneOptions(m, 2, 5, steps)
	tr := newTrainer(t, m, c)
	whole := addLane(t, tr, o)
	runUnits(t, tr)
	want := state(t, whole)
	for stop := 0; stop < 130; stop += 3 { // units before the lane leaves: at every stage of a step
		tr := newTrainer(t, m, c)
		l := addLane(t, tr, o)
		for range 1 + stop {
			if _, err := tr.Unit(); err != nil {
				t.Fatal(err)
			}
		}
		var b bytes.Buffer
		if err := l.Checkpoint().Encode(&b, "job"); err != nil {
			t.Fatal(err)
		}
		tr.Remove(l)
		tr.Close()

		from, err := DecodeCheckpoint(&b, "job", o.Rank*m.Geometry.OutTotal())
		if err != nil {
			t.Fatal(err)
		}
		again := newTrainer(t, m, c)
		other := laneOptions(m, 7, 3, 3)
		addLane(t, again, other)
		rest := o
		rest.From = from
		l = addLane(t, again, rest)
		runUnits(t, again)
		if got := state(t, l); !bytes.Equal(got, want) {
			t.Fatalf("resumed after %d units (step %d), the lane ends otherwise", stop+1, from.Step)
		}
		again.Close()
	}
}

// TestNotFinite: a lane whose gradients are not finite is skipped, then fails, and touches nobody else.
func TestNotFinite(t *testing.T) {
	m := tinyModel(t, "llama-bias", 8)
	c := TrainerConfig{Lanes: 2, BatchTokens: 160, Seqs: 12}
	healthy := laneOptions(m, 1, 4, 5)
	tr := newTrainer(t, m, c)
	l := addLane(t, tr, healthy)
	runUnits(t, tr)
	want := state(t, l)

	tr = newTrainer(t, m, c)
	sick := laneOptions(m, 2, 4, 20)
	sick.MaxSkips = 3
	sick.Start = randomStart(1, m.Geometry, 4, 8, 0.1)
	sick.Start.Data[5] = float32(math.NaN())
	var reports []Report
	sick.Report = func(r Report) { reports = append(reports, r) }
	bad := addLane(t, tr, sick)
	before := slices.Clone(bad.Weights().Data)
	l = addLane(t, tr, healthy)
	runUnits(t, tr)
	if !bytes.Equal(state(t, l), want) {
		t.Error("the healthy lane is not as it is alone")
	}
	skipped := 0
	for _, r := range reports {
		if r.Skipped {
			skipped++
		}
	}
	last := reports[len(reports)-1]
	if skipped != 3 || !errors.Is(last.Err, ErrDiverged) || !last.Completed {
		t.Errorf("%d steps were skipped, the last report is %+v", skipped, last)
	}
	state(t, bad) // can be stored
	after := bad.Weights().Data
	for i := range after {
		if math.Float32bits(before[i]) != math.Float32bits(after[i]) {
			t.Fatalf("a skipped step changed B at %d", i)
		}
	}
}

// TestNothingLearnt: a lane all of whose steps were skipped has failed, however few they are.
func TestNothingLearnt(t *testing.T) {
	m := tinyModel(t, "llama-bias", 8)
	tr := newTrainer(t, m, TrainerConfig{Lanes: 1, BatchTokens: 160, Seqs: 12})
	o := laneOptions(m, 2, 4, 3)
	o.Start = randomStart(1, m.Geometry, 4, 8, 0.1)
	o.Start.Data[5] = float32(math.NaN())
	var last Report
	o.Report = func(r Report) { last = r }
	addLane(t, tr, o)
	runUnits(t, tr)
	if !errors.Is(last.Err, ErrDiverged) || !last.Completed {
		t.Errorf("the last report is %+v", last)
	}
}

// TestNotFiniteEvaluation: a loss that is not finite is never the best, and the lane's state can be stored after it.
func TestNotFiniteEvaluation(t *testing.T) {
	m := tinyModel(t, "llama", 4)
	tr := newTrainer(t, m, TrainerConfig{Lanes: 1, BatchTokens: 64, Seqs: 8})
	l := addLane(t, tr, laneOptions(m, 2, 3, 4))
	for _, c := range []struct {
		loss float64
		best bool
	}{{math.NaN(), false}, {math.Inf(1), false}, {3, true}, {math.NaN(), false}, {2, true}, {math.Inf(1), false}} {
		var got Report
		l.o.Report = func(r Report) { got = r }
		l.lossSum, l.lossN = c.loss, 1
		l.finishEval()
		state(t, l)
		if got.Best != c.best || l.pos.HasBest && l.pos.BestLoss > 3 {
			t.Errorf("after a loss of %g: %+v, %+v", c.loss, got, l.pos)
		}
	}
}

// TestLeaving: a lane that leaves while a pass with its tokens is under way, and another that takes its place at once, change
// nothing for those that stay.
func TestLeaving(t *testing.T) {
	m := tinyModel(t, "llama", 8)
	stays, next := laneOptions(m, 1, 4, 6), laneOptions(m, 3, 8, 4)
	alone := func(o LaneOptions) []byte {
		tr := newTrainer(t, m, TrainerConfig{Lanes: 2})
		l := addLane(t, tr, o)
		runUnits(t, tr)
		return state(t, l)
	}
	wantStays, wantNext := alone(stays), alone(next)
	for units := range 2*int(infer.Parts)*len(m.Layers) + 6 { // at every stage of a pass
		tr := newTrainer(t, m, TrainerConfig{Lanes: 2})
		l, leaves := addLane(t, tr, stays), addLane(t, tr, laneOptions(m, 2, 4, 20))
		for range units {
			if _, err := tr.Unit(); err != nil {
				t.Fatal(err)
			}
		}
		tr.Remove(leaves)
		n := addLane(t, tr, next)
		runUnits(t, tr)
		if !bytes.Equal(state(t, l), wantStays) {
			t.Errorf("left after %d units: the lane that stays is not as it is alone", units)
		}
		if !bytes.Equal(state(t, n), wantNext) {
			t.Errorf("left after %d units: the lane that took its place is not as it is alone", units)
		}
	}
}

// TestTargets: what no target projection owns stays as it was.
func TestTargets(t *testing.T) {
	m := tinyModel(t, "llama-bias", 8)
	tr := newTrainer(t, m, TrainerConfig{Lanes: 1, BatchTokens: 160, Seqs: 12})
	o := laneOptions(m, 2, 4, 3)
	o.Targets = []adapters.Proj{adapters.Q, adapters.V, adapters.Down}
	for _, o.Start = range []*adapters.Weights{nil, randomStart(3, m.Geometry, 4, 8, 0.1)} {
		l := addLane(t, tr, o)
		before := l.Weights()
		runUnits(t, tr)
		w := l.Weights()
		for layer := range m.Geometry.Layers {
			for p := range adapters.NumProjs {
				if got, want := norm(w.Module(layer, p), before.Module(layer, p)) > 0, slices.Contains(o.Targets, p); got != want {
					t.Errorf("layer %d, %v: changed %v, want %v", layer, p, got, want)
				}
			}
		}
		tr.Remove(l)
	}
}
