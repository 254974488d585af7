package finetune

import (
	"bytes"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestUnits: an optimizer step of two lanes is cut into parts of layers, losses of some tokens and a lane's update; with plan layer
// every layer's attention, gate and up run twice.
func TestUnits(t *testing.T) {
	m := tinyModel(t, "llama", 8)
	for plan, again := range map[string][]string{"none": nil, "mlp": {"gate and up again"}, "layer": {"attend again", "gate and up again"}} {
		tr := newTrainer(t, m, TrainerConfig{Lanes: 2, BatchTokens: 256, MemoryPlan: plan})
		tr.headTokens = 32
		for i := range 2 {
			o := laneOptions(m, uint64(3*i), 4, 1) // each step is one batch
			o.Held = nil
			addLane(t, tr, o)
		}
		var got []string
		for {
			u, ok := tr.Next()
			if !ok {
				break
			}
			got = append(got, u.Kind)
			if more, err := tr.Unit(); !more {
				t.Fatal(err)
			}
			if u.Settled != (u.Kind == "finish") {
				t.Errorf("%+v", u)
			}
		}
		tokens := int(tr.train.rec.Head[0])
		want := []string{"compose"}
		for range m.Layers {
			want = append(want, forwardKinds[:]...)
		}
		for range ceilDiv(tokens, 32) {
			want = append(want, "losses")
		}
		for range m.Layers {
			want = append(want, again...)
			want = append(want, "backward down", "backward gate and up", "backward attend")
		}
		want = append(want, "gradient norms", "update", "update", "finish")
		if !slices.Equal(got, want) {
			t.Errorf("plan %s: %d tokens:\n got %q\nwant %q", plan, tokens, got, want)
		}
		if tokens <= 32 {
			t.Error("the losses of all tokens are one unit: the cut cannot fail")
		}
	}
}

// TestHeadTokens: however the losses are cut, lanes end the same, bit for bit.
func TestHeadTokens(t *testing.T) {
	m := tinyModel(t, "llama", 8)
	var want []byte
	for _, n := range []int{1 << 20, 100, 7} {
		tr := newTrainer(t, m, TrainerConfig{Lanes: 1, BatchTokens: 256})
		tr.headTokens = n
		l := addLane(t, tr, laneOptions(m, 1, 4, 3))
		runUnits(t, tr)
		if got := state(t, l); want == nil {
			want = got
		} else if !bytes.Equal(got, want) {
			t.Errorf("with losses of %d tokens at a time the lane ends otherwise", n)
		}
	}
}

// TestSamplesFitTheContext: a micro-batch may hold more tokens than the model has positions, and a sample still ends within them.
func TestSamplesFitTheContext(t *testing.T) {
	m := tinyModel(t, "llama", 8)
	tr := newTrainer(t, m, TrainerConfig{Lanes: 1, BatchTokens: 4 * m.Positions})
	o := laneOptions(m, 1, 4, 1)
	o.Held = nil
	l := addLane(t, tr, o)
	prompt := make([]int, 2*m.Positions)
	var got [][]int
	tr.Sample(l, true, [][]int{prompt, {1}}, 512, func(int) bool { return false }, func(out [][]int) { got = out })
	runUnits(t, tr)
	if len(got) != 2 || len(got[0]) != m.Positions/2 || len(got[1]) != m.Positions/2 {
		t.Errorf("%d texts", len(got))
	}
}

// TestSamplesShare: the samples of one lane, however long, keep no other from training, and are the same as alone.
func TestSamplesShare(t *testing.T) {
	m := tinyModel(t, "llama", 8)
	most := m.Positions / 2
	if most < 2*samplePart {
		t.Fatalf("samples of %d tokens are too short", most)
	}
	never := func(int) bool { return false }
	var alone, beside [][]int
	for _, got := range []*[][]int{&alone, &beside} {
		tr := newTrainer(t, m, TrainerConfig{Lanes: 2, BatchTokens: 256})
		first, other := laneOptions(m, 1, 4, 3), laneOptions(m, 2, 4, 1000)
		first.Held, other.Held, other.Batching = nil, nil, Batching{Examples: 1, Batches: 1}
		lane := addLane(t, tr, first)
		steps := 0
		other.Report = func(Report) { steps++ }
		if got == &beside {
			addLane(t, tr, other)
		}
		tr.Sample(lane, false, [][]int{{1, 2, 3}, {4, 5}}, most, never, func(out [][]int) { *got = out })
		for *got == nil {
			if more, err := tr.Unit(); !more {
				t.Fatal(err)
			}
			if lane.pos.Step > 0 {
				t.Fatal("the lane goes on before its sample is through")
			}
		}
		if want := (most - 1) / samplePart; got == &beside && steps < want {
			t.Errorf("the other lane has done %d steps during %d tokens, want at least %d", steps, most, want)
		}
	}
	if d := cmp.Diff(alone, beside); d != "" {
		t.Errorf("the samples are not those of a lane alone (-alone +beside):\n%s", d)
	}
}
