package finetune

import (
	"bytes"
	"testing"

	"bhive/infer"
	"bhive/kernels"
	"bhive/kernels/kerneltest"

	"github.com/google/go-cmp/cmp"
)

// TestMemoryPlans: whatever a pass recomputes, everything of two lanes and the samples of one is the same after some steps, bit for bit, and as it
// is without samples and from memory that holds zeros, not NaNs; and the memory is what was predicted, less with each plan.
func TestMemoryPlans(t *testing.T) {
	for _, name := range []string{"llama-bias", "qwen3", "mistral-window"} {
		be := kerneltest.NewLedger(openDevice(t, true))
		m := tinyModelOn(t, be, name, 8)
		var want [2][]byte
		var texts [][][]int
		var before int64
		for i, plan := range append([]string{"none"}, infer.SavePlans...) {
			c := TrainerConfig{Lanes: 2, BatchTokens: 160, Seqs: 12, MemoryPlan: plan}
			had := be.Bytes()
			tr := newTrainer(t, m, c)
			took := be.Bytes() - had
			c.SetDefaults(m.Config.MaxPositions)
			if predicted := c.Bytes(m, tr.mem.Save.Plan); took != predicted {
				t.Errorf("%s, plan %s takes %d bytes, %d were predicted", name, plan, took, predicted)
			}
			if i > 1 && took >= before {
				t.Errorf("%s, plan %s takes %d bytes, the one before it %d", name, plan, took, before)
			}
			before = took
			if tr.MemoryPlan() != plan {
				t.Errorf("%s: plan %s is in force, want %s", name, tr.MemoryPlan(), plan)
			}
			first := laneOptions(m, 1, 4, 3)
			var lanes []*Lane
			var got [][][]int
			if i > 0 {
				b := tr.mem.DRes.Buf
				m.Backend.Upload(tr.stream, kernels.Tensor{Buf: b, DType: kernels.U8, Rows: 1, Cols: int(b.Bytes()), Stride: int(b.Bytes())}, bytes.Repeat([]byte{0xff}, int(b.Bytes())))
				first.Report = func(Report) {
					tr.Sample(lanes[0], false, [][]int{{1, 2, 3}, {4, 5}}, 4, func(int) bool { return false }, func(out [][]int) { got = append(got, out) })
				}
			}
			lanes = append(lanes, addLane(t, tr, first), addLane(t, tr, laneOptions(m, 2, 8, 3)))
			runUnits(t, tr)
			for j, l := range lanes {
				if got := state(t, l); i == 0 {
					want[j] = got
				} else if !bytes.Equal(got, want[j]) {
					t.Errorf("%s, plan %s: lane %d ends otherwise", name, plan, j)
				}
			}
			if i == 1 {
				texts = got
			} else if d := cmp.Diff(texts, got); i > 1 && (d != "" || len(got) < 3) {
				t.Errorf("%s, plan %s: %d samples (-plan none +this):\n%s", name, plan, len(got), d)
			}
			tr.Close()
		}
		if bytes.Equal(want[0], want[1]) {
			t.Error("two different lanes are equal: the comparison cannot fail")
		}
	}
}

// TestAutoPlan: the plan that recomputes least among those that fit.
func TestAutoPlan(t *testing.T) {
	m := tinyModel(t, "llama-bias", 8)
	c := TrainerConfig{BatchTokens: 160}
	c.SetDefaults(m.Config.MaxPositions)
	for p := infer.RecomputeNone; p <= infer.RecomputeLayer; p++ {
		fits := c.Bytes(m, p)/7*8 + 16
		if got := c.plan(m, fits); got != p {
			t.Errorf("with %d bytes free the plan is %v, want %v", fits, got, p)
		}
	}
	if got := c.plan(m, 0); got != infer.RecomputeLayer {
		t.Errorf("with no memory the plan is %v", got)
	}
	c.MemoryPlan = "most"
	if err := c.Validate(); err == nil {
		t.Error("a plan of no known name is valid")
	}
}
