package finetune

import (
	"errors"
	"slices"
	"testing"

	"bhive/adapters"
	"bhive/kernels"
)

// Checkpoint is checkpoint at once.
func (l *Lane) Checkpoint() (c *Checkpoint) {
	l.checkpoint(func(got *Checkpoint, _ error) { c = got })
	l.t.endCopies(l)
	return c
}

// Weights is weights at once.
func (l *Lane) Weights(best bool) (w *adapters.Weights) {
	l.weights(best, func(got *adapters.Weights, _ error) { w = got })
	l.t.endCopies(l)
	return w
}

func (t *Trainer) downloadFloats(x kernels.Tensor) []float32 {
	out := make([]float32, x.Elements())
	t.m.Backend.Download(t.stream, floatBytes(out), x)
	t.sync()
	return out
}

// A copy that is asked for at any moment goes in pieces, is of one moment between two optimizer steps, and changes nothing of the training.
func TestCopies(t *testing.T) {
	m := tinyModel(t, "llama", 4)
	o := laneOptions(m, 2, 3, 4)
	run := func(at int) (final []byte) {
		tr := newTrainer(t, m, TrainerConfig{Lanes: 2, BatchTokens: 64, Seqs: 8})
		for _, b := range tr.buffers {
			b.data = b.data[:250] // of a B that has more
		}
		l := addLane(t, tr, o)
		other := addLane(t, tr, laneOptions(m, 5, 2, 4))
		for range at {
			if more, err := tr.Unit(); err != nil || !more {
				return nil
			}
		}
		var got, second *Checkpoint
		var b *adapters.Weights
		step := -1
		l.checkpoint(func(c *Checkpoint, err error) {
			if err != nil {
				t.Error(err)
			}
			got, step = c, l.pos.Step
			if !slices.Equal(c.B, tr.downloadFloats(l.master)) || !slices.Equal(c.M, tr.downloadFloats(l.m)) || !slices.Equal(c.V, tr.downloadFloats(l.v)) {
				t.Errorf("after %d units: what was copied is not what the device holds", at)
			}
		})
		l.weights(true, func(w *adapters.Weights, _ error) { b = w })
		other.checkpoint(func(c *Checkpoint, _ error) { second = c })
		copies := 0
		for second == nil {
			u, ok := tr.Next()
			if ok && u.Kind == "copy" && u.Due != (b == nil) {
				t.Fatalf("after %d units: a copy is due: %v", at, u.Due)
			}
			if !ok {
				t.Fatal("nothing to do while a copy waits")
			}
			if u.Kind == "copy" {
				copies++
			} else if copies > 0 && u.Kind != "copied" {
				t.Fatalf("after %d units: %q comes between the pieces of a copy", at, u.Kind)
			}
			if _, err := tr.Unit(); err != nil {
				t.Fatal(err)
			}
		}
		n := 3 * m.Geometry.OutTotal()
		if got == nil || got.Step != step || b == nil || len(b.Data) != n || copies < 3*n/250 {
			t.Fatalf("after %d units: %d copies of %d numbers, %+v", at, copies, n, b)
		}
		want := got.B
		if l.pos.HasBest {
			want = l.best
		}
		if !slices.Equal(b.Data, want) || b.Scaling != l.scale || b.Rank != 3 || b.Alpha != o.Alpha {
			t.Errorf("after %d units: the weights are others than the lane's", at)
		}
		runUnits(t, tr)
		return state(t, l)
	}
	unbroken := run(0)
	for at := 1; ; at++ {
		final := run(at)
		if final == nil {
			break
		}
		if !slices.Equal(final, unbroken) {
			t.Fatalf("a copy after %d units changes the training", at)
		}
		if at > 20 {
			at += 6
		}
	}
}

// Whoever waits for a copy hears of it: before its lane leaves, and when there will be none.
func TestCopyEnds(t *testing.T) {
	m := tinyModel(t, "llama", 4)
	tr := newTrainer(t, m, TrainerConfig{Lanes: 2, BatchTokens: 64, Seqs: 8})
	l, other := addLane(t, tr, laneOptions(m, 2, 3, 4)), addLane(t, tr, laneOptions(m, 5, 2, 4))
	var got error
	calls := 0
	done := func(c *Checkpoint, err error) {
		calls++
		if got = err; (c == nil) != (err != nil) {
			t.Errorf("%v, %v", c, err)
		}
	}
	l.checkpoint(done)
	if tr.Remove(l); calls != 1 || got != nil {
		t.Errorf("when the lane left: %d calls, %v", calls, got)
	}
	if l.checkpoint(done); calls != 2 || !errors.Is(got, errGone) {
		t.Errorf("of a lane that has left: %d calls, %v", calls, got)
	}
	other.checkpoint(done)
	tr.Unit()
	tr.err = errors.New("the device failed")
	if tr.failCopies(); calls != 3 || !errors.Is(got, tr.err) {
		t.Errorf("when the device failed: %d calls, %v", calls, got)
	}
	if other.checkpoint(done); calls != 4 || !errors.Is(got, tr.err) {
		t.Errorf("after the device failed: %d calls, %v", calls, got)
	}
}
