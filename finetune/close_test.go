package finetune

import (
	"errors"
	"testing"

	"bhive/adapters"
	"bhive/infer"
	"bhive/kernels"
	"bhive/kernels/kerneltest"

	"github.com/google/go-cmp/cmp"
)

// TestCloseFrees: a trainer gives back whatever it allocated, after training, in the middle of it, and where an allocation fails.
func TestCloseFrees(t *testing.T) {
	be := kerneltest.NewLedger(openDevice(t, false))
	cp := openDemo(t)
	basis, err := adapters.NewBasis(t.Context(), adapters.BasisConfig{R: 8, Geometry: geometry(cp.Config()), BaseHash: infer.BaseHash(cp)})
	if err != nil {
		t.Fatal(err)
	}
	m := load(t, be, cp, basis, format())
	loaded := be.Live()
	examples := goldenExamples(t, "testdata/demo")
	options := LaneOptions{Rank: 4, Alpha: 8, Train: examples[:3], Held: examples[3:4], Batching: Batching{Examples: 2, Batches: 1}, Schedule: Schedule{Kind: ScheduleConstant, Steps: 2, Rate: 1e-3}, Beta1: 0.9, Beta2: 0.99,
		Epsilon: 1e-8, Correction: true, EvalSteps: 1, KeepBest: true}
	life := func(units int, remove bool) error {
		tr, err := NewTrainer(m, TrainerConfig{Lanes: 2, BatchTokens: 128, Seqs: 4})
		if err != nil {
			return err
		}
		defer tr.Close()
		defer tr.Close()
		l, err := tr.Add(options)
		if err != nil {
			return err
		}
		if _, err := tr.Add(options); err != nil {
			return err
		}
		tr.Sample(l, false, [][]int{{1, 2, 3}}, 2, func(int) bool { return false }, func([][]int) {})
		for range units {
			if more, err := tr.Unit(); err != nil || !more {
				return err
			}
		}
		l.Checkpoint()
		if remove {
			tr.Remove(l)
			_, err = tr.Add(options)
		}
		return err
	}
	for _, units := range []int{0, 1, 9, 1000} {
		for _, remove := range []bool{false, true} {
			if err := life(units, remove); err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(loaded, be.Live()); d != "" {
				t.Fatalf("after %d units is left (-before +after):\n%s", units, d)
			}
		}
	}
	for n := 1; ; n++ {
		be.FailAt(n)
		err := life(0, true)
		be.FailAt(0)
		if d := cmp.Diff(loaded, be.Live()); d != "" {
			t.Fatalf("where allocation %d fails (%v) is left (-before +after):\n%s", n, err, d)
		}
		if err == nil {
			break
		}
		if !errors.Is(err, kernels.ErrNoMemory) {
			t.Fatalf("allocation %d fails: %v", n, err)
		}
	}
}
