package finetune

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"bhive/adapters"
)

func TestJob(t *testing.T) {
	model := demoModel(t, 16)
	store := openStore(t, t.TempDir())
	h := openHive(t, model, store, Config{ProgressEvery: time.Nanosecond}, nil)
	ctx := t.Context()
	j := h.submit(t, spec("pirate", func(s *JobSpec) {
		s.ValidationSplit = 0.25
		s.SamplePrompts = []string{"What is a cat?"}
		s.SampleTokens = 6
		s.MaxSteps = 20
	}))
	if _, err := h.m.Submit(ctx, spec("pirate", nil)); !errors.Is(err, adapters.ErrExists) {
		t.Errorf("a second job of the name: %v", err)
	}
	got, events := h.wait(t, "anna", j.ID)
	if got.MemoryPlan != "none" {
		t.Errorf("the memory plan is %q, with memory enough for none", got.MemoryPlan)
	}
	if got.State != Succeeded || got.Result == nil || got.Result.Version != 1 {
		t.Fatalf("the job is %+v, error %+v", got, got.Error)
	}
	for kind, least := range map[EventType]int{EventState: 4, EventProgress: 15, EventValidation: 5, EventSample: 3, EventPublished: 1} {
		if n := count(events, kind); n < least {
			t.Errorf("%d events of type %s, want at least %d", n, kind, least)
		}
	}
	var first, last *Sample
	for _, e := range events {
		if e.Sample != nil {
			if first == nil {
				first = e.Sample
			}
			last = e.Sample
		}
		if e.Result != nil && e.Result.Version != 1 {
			t.Errorf("event %d has result %+v", e.Seq, e.Result)
		}
	}
	t.Logf("base %q, first %q, last %q; %+v", last.Base, first.Candidate, last.Candidate, got.Progress)
	if last.Base == last.Candidate || last.Base != first.Base {
		t.Errorf("samples: %+v, then %+v", first, last)
	}
	v, err := store.Get(ctx, "anna", "pirate", 0)
	if err != nil {
		t.Fatal(err)
	}
	if v.Number != 1 || v.Rank != 4 || v.Alpha != 8 || !json.Valid(v.Training) {
		t.Errorf("version %+v", v)
	}
	if err := adapters.CheckVersion(model.Basis)(v); err != nil {
		t.Error(err)
	}
	if _, err := store.Get(ctx, "ben", "pirate", 0); !errors.Is(err, adapters.ErrNotFound) {
		t.Errorf("another tenant's view: %v", err)
	}

	// Online: the next version goes on from the live one.
	j = h.submit(t, spec("pirate", func(s *JobSpec) { s.Parent, s.Rank = "pirate", 0 }))
	if got, _ = h.wait(t, "anna", j.ID); got.State != Succeeded || got.Result.Version != 2 {
		t.Fatalf("the continuation is %+v, error %+v", got, got.Error)
	}
	if v, err = store.Get(ctx, "anna", "pirate", 0); err != nil || v.Number != 2 || v.Parent != 1 {
		t.Errorf("version %+v, %v", v, err)
	}
	if got.Progress.Loss >= 1.5 {
		t.Errorf("the continuation's loss is %g, as if it had begun anew", got.Progress.Loss)
	}

	// Lists and strangers.
	list, more, err := h.m.List(ctx, "anna", ListOptions{Limit: 1, Adapter: "pirate"})
	if err != nil || len(list) != 1 || !more || list[0].ID != j.ID {
		t.Errorf("list %v, more %v, %v", list, more, err)
	}
	if list, more, err = h.m.List(ctx, "anna", ListOptions{After: j.ID}); err != nil || len(list) != 1 || more {
		t.Errorf("second page %v, more %v, %v", list, more, err)
	}
	for _, tenant := range []string{"", "ben"} {
		if _, err := h.m.Get(ctx, tenant, j.ID); !errors.Is(err, ErrNotFound) {
			t.Errorf("tenant %q sees the job: %v", tenant, err)
		}
	}
	if _, err := h.m.Get(ctx, adapters.AllTenants, j.ID); err != nil {
		t.Error(err)
	}
	if _, err := h.m.Cancel(ctx, "anna", j.ID); !errors.Is(err, ErrState) {
		t.Errorf("cancelling a finished job: %v", err)
	}
}

func TestBadJobs(t *testing.T) {
	h := openHive(t, demoModel(t, 16), openStore(t, t.TempDir()), Config{}, nil)
	for _, c := range []struct {
		name   string
		field  string
		is     error
		change func(*JobSpec)
	}{
		{"no name", "name", ErrSpec, func(s *JobSpec) { s.Name = "" }},
		{"path in name", "name", ErrSpec, func(s *JobSpec) { s.Name = "../x" }},
		{"rank over R", "rank", adapters.ErrRank, func(s *JobSpec) { s.Rank = 17 }},
		{"negative rank", "rank", ErrSpec, func(s *JobSpec) { s.Rank = -1 }},
		{"unknown parent", "parent", adapters.ErrNotFound, func(s *JobSpec) { s.Parent = "nobody" }},
		{"a mix as parent", "parent", ErrSpec, func(s *JobSpec) { s.Parent = "a:0.7+b:0.3" }},
		{"no examples", "examples", ErrSpec, func(s *JobSpec) { s.Training = nil }},
		{"unknown schedule", "lr_scheduler_type", ErrSpec, func(s *JobSpec) { s.Scheduler = "step" }},
		{"rate", "learning_rate", ErrSpec, func(s *JobSpec) { s.LearningRate.Value = -1 }},
		{"best of nothing", "publish", ErrSpec, func(s *JobSpec) { s.Publish = "best" }},
		{"targets", "target_modules[1]", ErrSpec, func(s *JobSpec) { s.TargetModules = []string{"q_proj", "lm_head"} }},
		{"too long", "max_length", ErrSpec, func(s *JobSpec) { s.MaxLength = 5000 }},
	} {
		_, err := h.m.Submit(t.Context(), spec("x", c.change))
		var f *FieldError
		if !errors.Is(err, c.is) || !errors.As(err, &f) || f.Field != c.field {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	_, err := h.m.Submit(t.Context(), spec("x", func(s *JobSpec) { s.Training = strings.NewReader(pirates(1) + "{]\n\n" + `{"text":5}`) }))
	var ex *ExamplesError
	if !errors.As(err, &ex) || ex.Total != 2 || ex.Lines[0].Line != 2 || ex.Lines[1].Line != 4 || ex.Lines[1].Field != "text" || ex.Param != "training_file" {
		t.Errorf("bad lines: %v", err)
	}
	// Deferred, the same is the job's error.
	j := h.submit(t, spec("x", func(s *JobSpec) { s.Training, s.Deferred = strings.NewReader("{]"), true }))
	got, events := h.wait(t, "anna", j.ID)
	if got.State != Failed || got.Error == nil || got.Error.Code != "invalid_training_file" || len(got.Error.Lines) != 1 || count(events, EventError) != 1 {
		t.Errorf("job %+v, error %+v", got, got.Error)
	}
	if j = h.submit(t, spec("x", nil)); j.State.Final() { // the name is free again
		t.Errorf("job %+v", j)
	}
}

// TestPauseAndRestart: a job that was paused, and then survived the end of the process, publishes the same B as an unbroken one.
func TestPauseAndRestart(t *testing.T) {
	model := demoModel(t, 16)
	dir := t.TempDir()
	store := openStore(t, dir)
	long := func(s *JobSpec) { s.MaxSteps, s.ValidationSplit = 12, 0.25 }
	var p passes // what is broken off must not come to its end before
	p.allow(1000)
	h := openHive(t, model, store, Config{}, p.hold)
	whole := h.submit(t, spec("whole", long))
	if j, _ := h.wait(t, "anna", whole.ID); j.State != Succeeded {
		t.Fatalf("%+v %+v", j, j.Error)
	}
	want := loaded(t, h, "anna", "whole")

	p.allow(6) // a step and an evaluation each
	broken := h.submit(t, spec("broken", long))
	h.until(t, broken.ID, 2)
	j, err := h.m.Pause(t.Context(), "anna", broken.ID)
	if err != nil || j.State != Paused {
		t.Fatalf("%+v, %v", j, err)
	}
	if _, err := h.m.Pause(t.Context(), "anna", broken.ID); !errors.Is(err, ErrState) {
		t.Errorf("pausing twice: %v", err)
	}
	if j, err = h.m.Resume(t.Context(), "anna", broken.ID); err != nil || j.State.Final() {
		t.Fatalf("%+v, %v", j, err)
	}
	p.allow(6)
	h.until(t, broken.ID, j.Progress.Step+2)
	gone := h.submit(t, spec("gone", long))
	h.look(t, gone.ID, func(j *job) bool { return j.lane != nil })
	p.allow(6)
	h.until(t, gone.ID, 1)
	if j, err = h.m.Cancel(t.Context(), "anna", gone.ID); err != nil || j.State != Cancelled {
		t.Fatalf("%+v, %v", j, err)
	}
	h.stop()
	store.Close()

	store = openStore(t, dir)
	if r, err := store.GetJob(t.Context(), "anna", broken.ID); err != nil || r.State != string(Running) || len(r.Blobs) != 2 {
		t.Fatalf("between processes the job is %+v, %v", r, err)
	}
	h = openHive(t, model, store, Config{}, nil)
	j, events := h.wait(t, "anna", broken.ID)
	if j.State != Succeeded {
		t.Fatalf("%+v %+v", j, j.Error)
	}
	if count(events, EventCheckpoint) < 2 {
		t.Errorf("%d checkpoints", count(events, EventCheckpoint))
	}
	got := loaded(t, h, "anna", "broken")
	if d := norm(got.Data, want.Data); d != 0 {
		t.Errorf("the broken job's B is %g away from the unbroken one's", d)
	}
	if _, err := store.Get(t.Context(), "anna", "gone", 0); !errors.Is(err, adapters.ErrNotFound) {
		t.Errorf("the cancelled job published: %v", err)
	}
}

// TestManyTenants: jobs of several tenants at once, more than there are lanes, all end; each as if alone.
func TestManyTenants(t *testing.T) {
	model := demoModel(t, 16)
	h := openHive(t, model, openStore(t, t.TempDir()), Config{Trainer: TrainerConfig{Lanes: 2, BatchTokens: 256}}, nil)
	var ids [4]string
	for i := range ids {
		s := spec("same", nil)
		s.Tenant = fmt.Sprintf("tenant-%d", i)
		s.MaxSteps = 3
		ids[i] = h.submit(t, s).ID
	}
	var first *adapters.Weights
	for i, id := range ids {
		tenant := fmt.Sprintf("tenant-%d", i)
		if j, _ := h.wait(t, tenant, id); j.State != Succeeded {
			t.Fatalf("%+v %+v", j, j.Error)
		}
		w := loaded(t, h, tenant, "same")
		if first == nil {
			first = w
		} else if norm(w.Data, first.Data) != 0 {
			t.Errorf("tenant %d's B differs", i)
		}
	}
}

// TestPauseBeforeRunning: jobs are paused and cancelled in every state that comes before a lane.
func TestPauseBeforeRunning(t *testing.T) {
	var hold atomic.Bool
	hold.Store(true)
	h := openHive(t, demoModel(t, 16), openStore(t, t.TempDir()), Config{Trainer: TrainerConfig{Lanes: 1, BatchTokens: 256}, Waiting: 2}, held(&hold))
	waiting := h.submit(t, spec("waiting", nil)) // waits for the engine
	h.look(t, waiting.ID, func(j *job) bool { return j.joining })
	queued := h.submit(t, spec("queued", nil)) // waits for the lane
	third := h.submit(t, spec("third", nil))
	if _, err := h.m.Submit(t.Context(), spec("fourth", nil)); !errors.Is(err, ErrBusy) {
		t.Errorf("a full queue: %v", err)
	}
	if j, err := h.m.Pause(t.Context(), "anna", queued.ID); err != nil || j.State != Paused {
		t.Fatalf("%+v, %v", j, err)
	}
	if j, err := h.m.Cancel(t.Context(), "anna", third.ID); err != nil || j.State != Cancelled {
		t.Fatalf("%+v, %v", j, err)
	}
	paused := h.stopping(t, waiting.ID)
	hold.Store(false)
	if err := <-paused; err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{waiting.ID, queued.ID} {
		if _, err := h.m.Resume(t.Context(), "anna", id); err != nil {
			t.Fatal(err)
		}
		if j, _ := h.wait(t, "anna", id); j.State != Succeeded {
			t.Errorf("%+v %+v", j, j.Error)
		}
	}
}

// A job that waits for its lane has it taken away again, or it would train on for nobody.
func TestCancelBeforeRunning(t *testing.T) {
	var hold atomic.Bool
	hold.Store(true)
	h := openHive(t, demoModel(t, 16), openStore(t, t.TempDir()), Config{Trainer: TrainerConfig{Lanes: 1, BatchTokens: 256}}, held(&hold))
	j := h.submit(t, spec("short-lived", nil))
	h.look(t, j.ID, func(j *job) bool { return j.joining })
	cancelled := make(chan error, 1)
	go func() {
		_, err := h.m.Cancel(context.Background(), "anna", j.ID)
		cancelled <- err
	}()
	for stopping := false; !stopping; {
		err := h.m.do(t.Context(), func(done func(error)) {
			k, ok := h.m.jobs[j.ID]
			stopping = !ok || k.stop != nil
			done(nil)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	hold.Store(false)
	if err := <-cancelled; err != nil {
		t.Fatal(err)
	}
	if got, err := h.m.Get(t.Context(), "anna", j.ID); err != nil || got.State != Cancelled {
		t.Errorf("%+v, %v", got, err)
	}
	if next, _ := h.wait(t, "anna", h.submit(t, spec("short-lived", nil)).ID); next.State != Succeeded { // the only lane is free
		t.Errorf("%+v %+v", next, next.Error)
	}
	if got, _ := h.m.Get(t.Context(), "anna", j.ID); got.State != Cancelled {
		t.Errorf("the cancelled job is %s", got.State)
	}
}

// TestForgetsOldJobs: of the jobs that have ended the newest of each tenant are kept, and all that ended lately.
func TestForgetsOldJobs(t *testing.T) {
	var hold atomic.Bool
	hold.Store(true)
	h := openHive(t, demoModel(t, 16), openStore(t, t.TempDir()), Config{Trainer: TrainerConfig{Lanes: 1, BatchTokens: 256}, Ended: 2, Recent: time.Hour}, held(&hold))
	defer hold.Store(false)
	first := h.submit(t, spec("first", nil)) // has not ended
	var ids []string
	for i := range 4 {
		id := h.submit(t, spec(fmt.Sprint("job-", i), nil)).ID
		if _, err := h.m.Cancel(t.Context(), "anna", id); err != nil {
			t.Fatal(err)
		}
		ids = append([]string{id}, ids...)
	}
	ben := h.submit(t, spec("first", of("ben"))).ID
	if _, err := h.m.Cancel(t.Context(), "ben", ben); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		later time.Duration
		left  int
	}{{0, 4}, {2 * time.Hour, 2}} {
		if err := h.m.do(t.Context(), func(done func(error)) { done(h.m.forget(t.Context(), time.Now().Add(c.later))) }); err != nil {
			t.Fatal(err)
		}
		var got []string
		list, _, err := h.m.List(t.Context(), "anna", ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, j := range list {
			got = append(got, j.ID)
		}
		if want := append(slices.Clone(ids[:c.left]), first.ID); !slices.Equal(got, want) {
			t.Errorf("after %v there are %v, want %v", c.later, got, want)
		}
		if _, err := h.m.Get(t.Context(), "ben", ben); err != nil {
			t.Errorf("another tenant's: %v", err)
		}
	}
	if _, _, err := h.m.Log(t.Context(), "anna", ids[3], 0, 1000); !errors.Is(err, ErrNotFound) {
		t.Errorf("the events of one that is removed: %v", err)
	}
}

// TestProgressOfALongJob: what a job that runs for days leaves in its log does not grow with each step.
func TestProgressOfALongJob(t *testing.T) {
	var p passes // which composes none
	h := openHive(t, demoModel(t, 16), openStore(t, t.TempDir()), Config{}, p.hold)
	id := h.submit(t, spec("long", func(s *JobSpec) { s.MaxSteps = 1e6 })).ID
	h.look(t, id, func(j *job) bool { return j.lane != nil })
	const hours = 14
	events := 0
	if err := h.m.do(t.Context(), func(done func(error)) {
		j := h.m.jobs[id]
		for now, step := *j.public.Started, 1; now.Sub(*j.public.Started) < hours*time.Hour; step++ {
			now = now.Add(time.Second / 4)
			h.m.progress(t.Context(), j, Report{Step: step, Tokens: 10}, position{}, now)
			events += len(j.pending)
			j.pending = nil
		}
		done(nil)
	}); err != nil {
		t.Fatal(err)
	}
	if events < 10_000 || events > 50_000 {
		t.Errorf("%d events of a job of %d hours", events, hours)
	}
}
