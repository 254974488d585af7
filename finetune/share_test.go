package finetune

import (
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"
)

// of gives a job to another tenant.
func of(tenant string) func(*JobSpec) { return func(s *JobSpec) { s.Tenant = tenant } }

// TestSharesLanes: a tenant whose jobs have all lanes gives one to a tenant that has none, and has it again afterwards.
func TestSharesLanes(t *testing.T) {
	h := openHive(t, demoModel(t, 16), openStore(t, t.TempDir()), Config{Trainer: TrainerConfig{Lanes: 2, BatchTokens: 256}}, nil)
	var ids [2]string
	for i := range ids {
		ids[i] = h.submit(t, spec(fmt.Sprint("endless-", i), func(s *JobSpec) { s.MaxSteps = 1e6 })).ID
		h.until(t, ids[i], 1)
	}
	if j, _ := h.wait(t, "ben", h.submit(t, spec("short", of("ben"))).ID); j.State != Succeeded {
		t.Fatalf("%+v %+v", j, j.Error)
	}
	for i, id := range ids {
		log, _, err := h.m.Log(t.Context(), "anna", id, 0, 1000)
		if err != nil {
			t.Fatal(err)
		}
		queued := 0
		for _, e := range log {
			if e.Type == EventState && e.State == Queued {
				queued++
			}
		}
		if queued != 1+i { // the newest is the one to go
			t.Errorf("job %d was queued %d times", i, queued)
		}
		j, err := h.m.Get(t.Context(), "anna", id)
		if err != nil {
			t.Fatal(err)
		}
		h.until(t, id, j.Progress.Step+1)
		if j, err = h.m.Get(t.Context(), "anna", id); err != nil || j.State.Final() {
			t.Errorf("job %d: %+v, %v", i, j, err)
		}
	}
}

// TestTakesTurns: where tenants that wait are more than there are lanes, they take turns.
func TestTakesTurns(t *testing.T) {
	h := openHive(t, demoModel(t, 16), openStore(t, t.TempDir()), Config{Trainer: TrainerConfig{Lanes: 1, BatchTokens: 256}, Turn: time.Nanosecond}, nil)
	endless := h.submit(t, spec("endless", func(s *JobSpec) { s.MaxSteps = 1e6 }))
	h.until(t, endless.ID, 1)
	ben, carl := h.submit(t, spec("short", of("ben"))), h.submit(t, spec("short", of("carl")))
	for tenant, id := range map[string]string{"ben": ben.ID, "carl": carl.ID} {
		if j, _ := h.wait(t, tenant, id); j.State != Succeeded {
			t.Errorf("%+v %+v", j, j.Error)
		}
	}
	j, err := h.m.Get(t.Context(), "anna", endless.ID)
	if err != nil {
		t.Fatal(err)
	}
	h.until(t, endless.ID, j.Progress.Step+1)
}

// TestSharesTheQueue: a tenant that fills all places keeps no other from its share of them, and has no more jobs than it may, also where they are paused.
func TestSharesTheQueue(t *testing.T) {
	var hold atomic.Bool
	hold.Store(true)
	h := openHive(t, demoModel(t, 16), openStore(t, t.TempDir()), Config{Trainer: TrainerConfig{Lanes: 1, BatchTokens: 256}, Waiting: 4, Unfinished: 6}, held(&hold))
	first := h.submit(t, spec("first", nil))
	h.look(t, first.ID, func(j *job) bool { return j.joining })
	submit := func(tenant, name string) (string, error) {
		s := spec(name, of(tenant))
		j, err := h.m.Submit(t.Context(), s)
		return j.ID, err
	}
	var paused string
	for _, c := range []struct {
		tenant string
		most   int
	}{{"anna", 4}, {"ben", 2}, {"carl", 1}} {
		for i := range c.most {
			id, err := submit(c.tenant, fmt.Sprint("job-", i))
			if err != nil {
				t.Errorf("%s's job %d: %v", c.tenant, i, err)
			}
			if c.tenant == "anna" {
				paused = id
			}
		}
		if _, err := submit(c.tenant, "one-more"); !errors.Is(err, ErrBusy) {
			t.Errorf("%s's next job: %v", c.tenant, err)
		}
	}
	for _, tenant := range []string{"ben", "carl"} {
		list, _, err := h.m.List(t.Context(), tenant, ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, j := range list {
			if _, err := h.m.Cancel(t.Context(), tenant, j.ID); err != nil {
				t.Fatal(err)
			}
		}
	}
	for i, want := range []error{nil, ErrBusy} {
		if _, err := h.m.Pause(t.Context(), "anna", paused); err != nil {
			t.Fatal(err)
		}
		id, err := submit("anna", fmt.Sprint("another-", i))
		if !errors.Is(err, want) {
			t.Errorf("job %d beside paused ones: %v", i, err)
		}
		paused = id
	}
	hold.Store(false)
}
