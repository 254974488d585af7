package finetune

import (
	"testing"
	"time"
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
