package finetune

import (
	"bytes"
	"errors"
	"io"
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

// Weights is the lane's B as it is.
func (l *Lane) Weights() *adapters.Weights {
	return &adapters.Weights{Geometry: l.t.m.Geometry, Rank: l.o.Rank, Alpha: l.o.Alpha, Scaling: l.scale, Data: l.t.downloadFloats(l.master)}
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
		b, brought := l.encoding(), false
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
		l.weights(true, b, func() { brought = true })
		other.checkpoint(func(c *Checkpoint, _ error) { second = c })
		copies := 0
		for second == nil {
			u, ok := tr.Next()
			if ok && u.Kind == "copy" && u.Due == brought {
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
		if got == nil || got.Step != step || !brought || copies < 3*n/(250*copyPieces) {
			t.Fatalf("after %d units: %d copies of %d numbers, to %d", at, copies, n, got.Step)
		}
		want := &adapters.Weights{Geometry: m.Geometry, Rank: 3, Alpha: o.Alpha, Scaling: l.scale, Data: got.B}
		if l.pos.HasBest {
			want.Data = l.best
		}
		var blob, wanted bytes.Buffer
		if err := errors.Join(b.Write(&blob, "rows", "base"), adapters.EncodeBlob(&wanted, want, "rows", "base")); err != nil || !bytes.Equal(blob.Bytes(), wanted.Bytes()) {
			t.Errorf("after %d units: the blob is of other weights than the lane's, %v", at, err)
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
	b := other.encoding()
	if other.weights(false, b, func() { calls++ }); calls != 5 || !errors.Is(b.Write(io.Discard, "rows", "base"), tr.err) {
		t.Errorf("a B after the device failed: %d calls", calls)
	}
}
