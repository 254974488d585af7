package finetune

import (
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"bhive/adapters"
)

// TestWaitingJobsAreClaimed: other workers see that the worker of a job that only waits lives, without a write at each tick.
func TestWaitingJobsAreClaimed(t *testing.T) {
	store := openStore(t, t.TempDir())
	h := openHive(t, demoModel(t, 16), store, Config{}, nil)
	j := h.submit(t, spec("paused", func(s *JobSpec) { s.MaxSteps = 1e6 }))
	if _, err := h.m.Pause(t.Context(), "anna", j.ID); err != nil {
		t.Fatal(err)
	}
	heartbeats := func(now time.Time) (changed bool) {
		t.Helper()
		before, err := store.GetJob(t.Context(), "anna", j.ID)
		if err != nil {
			t.Fatal(err)
		}
		if err := h.m.do(t.Context(), func(done func(error)) { h.m.tick(t.Context(), now); done(nil) }); err != nil {
			t.Fatal(err)
		}
		after, err := store.GetJob(t.Context(), "anna", j.ID)
		if err != nil {
			t.Fatal(err)
		}
		return after.Heartbeat.After(before.Heartbeat)
	}
	saved := time.Now()
	if err := h.m.do(t.Context(), func(done func(error)) { saved = h.m.jobs[j.ID].saved; done(nil) }); err != nil {
		t.Fatal(err)
	}
	if heartbeats(saved.Add(time.Second)) {
		t.Error("a paused job is written at each tick")
	}
	if !heartbeats(saved.Add(h.m.c.TakeOver / 2)) {
		t.Error("nobody hears that a paused job's worker lives")
	}
}

// TestOtherBasis: a job is not trained for another base model than it was submitted for, nor gone on with over other rows of A.
func TestOtherBasis(t *testing.T) {
	dir := t.TempDir()
	store := openStore(t, dir)
	model := demoModel(t, 16)
	h := openHive(t, model, store, Config{}, nil)
	j := h.submit(t, spec("paused", func(s *JobSpec) { s.MaxSteps, s.Rank = 1e6, 16 }))
	h.until(t, j.ID, 1)
	if _, err := h.m.Pause(t.Context(), "anna", j.ID); err != nil {
		t.Fatal(err)
	}
	h.stop()
	stored, err := store.GetJob(t.Context(), "anna", j.ID)
	if err != nil {
		t.Fatal(err)
	}
	put := func(change func(*jobData)) {
		t.Helper()
		k, err := readJob(stored)
		if err != nil {
			t.Fatal(err)
		}
		change(&k.data)
		stored.Data = k.record(k.public, "bhive").Data
		if stored, err = store.UpdateJob(t.Context(), "anna", stored); err != nil {
			t.Fatal(err)
		}
	}

	put(func(d *jobData) { d.Base = "another" })
	h = openHive(t, model, store, Config{}, nil)
	if _, err := h.m.Resume(t.Context(), "anna", j.ID); !errors.Is(err, ErrState) {
		t.Errorf("resuming a job of another base model: %v", err)
	}
	h.stop()
	if r, err := store.GetJob(t.Context(), "anna", j.ID); err != nil || r.Rev != stored.Rev {
		t.Errorf("a job of another base model is taken up: %+v, %v", r, err)
	}

	for _, c := range []struct {
		rows int // of the basis
		code string
		seed uint64
	}{{16, "internal", 5}, {8, "invalid_field", 0}} {
		put(func(d *jobData) { d.Base = model.Basis.BaseHash })
		cp := openDemo(t)
		basis, err := adapters.NewBasis(t.Context(), adapters.BasisConfig{Method: adapters.Orthonormal, R: c.rows, Seed: c.seed, Geometry: model.Geometry, BaseHash: model.Basis.BaseHash})
		if err != nil {
			t.Fatal(err)
		}
		h := openHive(t, load(t, openDevice(t, true), cp, basis, format()), store, Config{}, nil)
		if _, err := h.m.Resume(t.Context(), "anna", j.ID); err != nil {
			t.Fatal(err)
		}
		if got, _ := h.wait(t, "anna", j.ID); got.State != Failed || got.Error == nil || got.Error.Code != c.code {
			t.Errorf("over %d rows of seed %d: %s, %+v", c.rows, c.seed, got.State, got.Error)
		}
		h.stop()
		now, err := store.GetJob(t.Context(), "anna", j.ID)
		if err != nil {
			t.Fatal(err)
		}
		stored.Rev = now.Rev // to be put back as it was
	}
}

// taken has another worker take a job of anna's.
func taken(t *testing.T, store adapters.Store, id string) {
	t.Helper()
	r, err := store.GetJob(t.Context(), "anna", id)
	if err != nil {
		t.Fatal(err)
	}
	r.Worker = "another"
	if _, err := store.UpdateJob(t.Context(), "anna", r); err != nil {
		t.Fatal(err)
	}
}

// TestLostWhileJoining: a job that another worker has taken while it waits for a lane gives that back, and the next waits for it.
func TestLostWhileJoining(t *testing.T) {
	store := openStore(t, t.TempDir())
	var hold atomic.Bool
	hold.Store(true)
	h := openHive(t, demoModel(t, 16), store, Config{Trainer: TrainerConfig{Lanes: 1, BatchTokens: 256}}, held(&hold))
	lost := h.submit(t, spec("lost", nil))
	h.look(t, lost.ID, func(j *job) bool { return j.joining })
	taken(t, store, lost.ID)
	if err := h.m.do(t.Context(), func(done func(error)) { h.m.tick(t.Context(), time.Now()); done(nil) }); err != nil {
		t.Fatal(err)
	}
	next := h.submit(t, spec("next", nil))
	h.look(t, next.ID, func(j *job) bool { return j.joining })
	hold.Store(false)
	if j, _ := h.wait(t, "anna", next.ID); j.State != Succeeded {
		t.Errorf("%+v %+v", j, j.Error)
	}
	if r, err := store.GetJob(t.Context(), "anna", lost.ID); err != nil || r.Worker != "another" {
		t.Errorf("the lost job is %+v, %v", r, err)
	}
}

// TestCancelOfALostJob: a job that another worker has taken is not cancelled by the one that had it, and nobody is told that it was.
func TestCancelOfALostJob(t *testing.T) {
	store := openStore(t, t.TempDir())
	var hold atomic.Bool
	hold.Store(true)
	h := openHive(t, demoModel(t, 16), store, Config{Trainer: TrainerConfig{Lanes: 1, BatchTokens: 256}}, held(&hold))
	first := h.submit(t, spec("first", nil))
	h.look(t, first.ID, func(j *job) bool { return j.joining })
	lost := h.submit(t, spec("lost", nil))
	taken(t, store, lost.ID)
	if _, err := h.m.Cancel(t.Context(), "anna", lost.ID); !errors.Is(err, adapters.ErrConflict) {
		t.Errorf("cancelling it: %v", err)
	}
	if r, err := store.GetJob(t.Context(), "anna", lost.ID); err != nil || r.Worker != "another" || State(r.State) != Queued {
		t.Errorf("the lost job is %+v, %v", r, err)
	}
	if _, err := h.m.Cancel(t.Context(), "anna", lost.ID); !errors.Is(err, ErrState) {
		t.Errorf("cancelling another worker's job: %v", err)
	}
	hold.Store(false)
}

// TestOtherTrainTokens: a job whose examples were cut goes on with the same where more tokens are possible, and fails where they would be cut shorter.
func TestOtherTrainTokens(t *testing.T) {
	model, store := demoModel(t, 16), openStore(t, t.TempDir())
	open := func(tokens int) *hive {
		return openHive(t, model, store, Config{Trainer: TrainerConfig{BatchTokens: tokens}}, nil)
	}
	h := open(64)
	text := fmt.Sprintf(`{"text":%q}`, strings.Repeat("Arr, matey! ", 100))
	j := h.submit(t, spec("cut", func(s *JobSpec) { s.Training, s.Truncate, s.MaxSteps = strings.NewReader(text), true, 1e6 }))
	for _, tokens := range []int{64, 128} {
		if tokens > 64 {
			h = open(tokens)
		}
		h.until(t, j.ID, 1)
		h.look(t, j.ID, func(j *job) bool { return j.lane != nil })
		if j, err := h.m.Get(t.Context(), "anna", j.ID); err != nil || j.Progress.ExampleTokens != 64 {
			t.Errorf("with %d tokens an epoch has %d, %v", tokens, j.Progress.ExampleTokens, err)
		}
		h.stop()
	}
	if j, _ := open(32).wait(t, "anna", j.ID); j.State != Failed || !strings.Contains(j.Error.Message, "were cut to 64 tokens") {
		t.Errorf("%+v %+v", j, j.Error)
	}
}
