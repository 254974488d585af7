package finetune

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"bhive/adapters"
	"bhive/infer"
	"bhive/kernels/kerneltest"
)

// settled waits until a job that may be taken up is, and has a lane, waits or has ended, and reports whether it waits for another to leave.
func (h *hive) settled(t *testing.T, id string) (blocked bool) {
	t.Helper()
	for busy := true; busy; {
		if err := h.m.do(t.Context(), func(done func(error)) {
			h.m.start(t.Context())
			j := h.m.jobs[id]
			busy = j != nil && (j.preparing || j.joining)
			blocked = j != nil && j.blocked
			done(nil)
		}); err != nil {
			t.Fatal(err)
		}
	}
	return blocked
}

// look waits until something is so of a job.
func (h *hive) look(t *testing.T, id string, so func(*job) bool) {
	t.Helper()
	for is := false; !is; {
		if err := h.m.do(t.Context(), func(done func(error)) { is = so(h.m.jobs[id]); done(nil) }); err != nil {
			t.Fatal(err)
		}
	}
}

// stopping pauses a job and returns when Run's goroutine has begun to.
func (h *hive) stopping(t *testing.T, id string) (paused chan error) {
	t.Helper()
	paused = make(chan error, 1)
	go func() {
		_, err := h.m.Pause(context.Background(), "anna", id)
		paused <- err
	}()
	h.look(t, id, func(j *job) bool { return j.stop != nil })
	return paused
}

// TestNextWaitsForTheLane: the job that comes next is not begun before the one before has given its lane back, which may be long after it was paused.
func TestNextWaitsForTheLane(t *testing.T) {
	var hold atomic.Bool
	h := openHive(t, demoModel(t, 16), openStore(t, t.TempDir()), Config{Trainer: TrainerConfig{Lanes: 1, BatchTokens: 256}}, func(u infer.Unit) bool {
		return hold.Load() && u.Kind == "copy"
	})
	first := h.submit(t, spec("first", func(s *JobSpec) { s.MaxSteps = 1e6 }))
	next := h.submit(t, spec("next", nil))
	h.until(t, first.ID, 1)
	hold.Store(true)
	paused := h.stopping(t, first.ID)
	if h.settled(t, next.ID) {
		t.Error("the job was begun, and then found no lane")
	}
	hold.Store(false)
	if err := <-paused; err != nil {
		t.Fatal(err)
	}
	if j, _ := h.wait(t, "anna", next.ID); j.State != Succeeded {
		t.Errorf("%+v %+v", j, j.Error)
	}
}

// TestNextWaitsForTheEnd: a job's end may be durable before its lane is free.
func TestNextWaitsForTheEnd(t *testing.T) {
	store := openStore(t, t.TempDir())
	var first atomic.Value
	held := 0
	h := openHive(t, demoModel(t, 16), store, Config{Trainer: TrainerConfig{Lanes: 1, BatchTokens: 256}}, func(u infer.Unit) bool {
		if u.Kind != "copied" || !u.Due {
			return false
		}
		if id, ok := first.Load().(string); ok {
			if r, err := store.GetJob(context.Background(), "anna", id); err != nil || r.State == string(Succeeded) {
				held++ // and some time for the next to ask for it
			}
		}
		return held < 100
	})
	first.Store(h.submit(t, spec("first", nil)).ID)
	next := h.submit(t, spec("next", nil))
	if j, _ := h.wait(t, "anna", next.ID); j.State != Succeeded {
		t.Errorf("%+v %+v", j, j.Error)
	}
}

// TestWaitsForMemory: a job that finds no memory for its lane waits for another's, also for one that is being paused, and goes on when that has left.
func TestWaitsForMemory(t *testing.T) {
	be := kerneltest.NewLedger(openDevice(t, true))
	cp := openDemo(t)
	basis, err := adapters.NewBasis(t.Context(), adapters.BasisConfig{R: 16, Geometry: geometry(cp.Config()), BaseHash: infer.BaseHash(cp)})
	if err != nil {
		t.Fatal(err)
	}
	model := load(t, be, cp, basis, format())
	for _, pausing := range []bool{false, true} {
		var hold, full atomic.Bool
		h := openHive(t, model, openStore(t, t.TempDir()), Config{Trainer: TrainerConfig{Lanes: 2, BatchTokens: 256}}, func(u infer.Unit) bool {
			if u.Kind == "commands" && full.Load() { // the lane that is opened next finds no memory
				full.Store(false)
				be.FailAt(1)
			}
			return hold.Load() && u.Kind == "copy"
		})
		first := h.submit(t, spec("first", func(s *JobSpec) { s.MaxSteps = 1e6 }))
		h.until(t, first.ID, 1)
		var paused chan error
		if pausing {
			hold.Store(true)
			paused = h.stopping(t, first.ID)
			h.settledCommands(t)
		}
		full.Store(true)
		next := h.submit(t, spec("next", nil))
		if !h.settled(t, next.ID) {
			t.Errorf("pausing %v: the job does not wait", pausing)
		}
		be.FailAt(0)
		if !pausing {
			paused = h.stopping(t, first.ID)
		}
		hold.Store(false)
		if err := <-paused; err != nil {
			t.Fatal(err)
		}
		if j, _ := h.wait(t, "anna", next.ID); j.State != Succeeded {
			t.Errorf("pausing %v: %+v %+v", pausing, j, j.Error)
		}
		h.stop()
	}
}

// settledCommands waits until the engine has nothing from other goroutines.
func (h *hive) settledCommands(t *testing.T) {
	for h.m.device.waiting() {
		time.Sleep(time.Millisecond)
	}
}

// TestPausedAtShutdown: what is being paused when the process ends is paused, with its last step.
func TestPausedAtShutdown(t *testing.T) {
	store := openStore(t, t.TempDir())
	var hold atomic.Bool
	h := openHive(t, demoModel(t, 16), store, Config{}, func(u infer.Unit) bool { return hold.Load() && u.Kind == "copy" })
	j := h.submit(t, spec("paused", func(s *JobSpec) { s.MaxSteps = 1e6 }))
	h.until(t, j.ID, 1)
	hold.Store(true)
	paused := h.stopping(t, j.ID)
	go func() {
		time.Sleep(20 * time.Millisecond) // for Run to see its end
		hold.Store(false)
	}()
	h.stop()
	if err := <-paused; err != nil {
		t.Error(err)
	}
	if r, err := store.GetJob(t.Context(), "anna", j.ID); err != nil || State(r.State) != Paused || len(r.Blobs) != 2 {
		t.Errorf("the job is %+v, %v", r, err)
	}
}

// TestFailedWhilePaused: a job that fails while it is being paused or cancelled has failed.
func TestFailedWhilePaused(t *testing.T) {
	model, store := demoModel(t, 16), openStore(t, t.TempDir())
	w := adapters.NewWeights(model.Geometry, 4, 8)
	for i := range w.Data {
		w.Data[i] = 3e38 // no gradient of it is finite
	}
	basis := model.Basis
	v := adapters.Version{Name: "huge", BasisDigest: basis.RowsDigest(4), BaseHash: basis.BaseHash}
	if _, err := adapters.NewRegistry(store, nil).Save(t.Context(), "anna", v, w, adapters.PublishOptions{}); err != nil {
		t.Fatal(err)
	}
	var last, hold atomic.Bool
	steps := 0
	h := openHive(t, model, store, Config{}, func(u infer.Unit) bool {
		if u.Kind == "finish" && !hold.Load() && !last.Load() {
			if steps++; steps == 10 {
				last.Store(true)
				hold.Store(true)
			}
		}
		return hold.Load() && u.Kind == "finish"
	})
	j := h.submit(t, spec("huge", func(s *JobSpec) { s.Parent, s.MaxSteps = "huge", 100 }))
	for !last.Load() {
		time.Sleep(time.Millisecond)
	}
	paused := h.stopping(t, j.ID)
	h.settledCommands(t)
	hold.Store(false)
	if err := <-paused; !errors.Is(err, ErrState) {
		t.Errorf("pausing it: %v", err)
	}
	if r, err := store.GetJob(t.Context(), "anna", j.ID); err != nil || State(r.State) != Failed || len(r.Blobs) != 0 {
		t.Errorf("the job is %+v, %v", r, err)
	}
	if j, _ := h.wait(t, "anna", j.ID); j.State != Failed || j.Error == nil || j.Error.Code != "diverged" {
		t.Errorf("%+v %+v", j, j.Error)
	}
}

// TestDeviceFailsForALane: where the device fails while a lane is taken or given back, which is no unit of the trainer, all that runs has failed.
func TestDeviceFailsForALane(t *testing.T) {
	h := openHive(t, demoModel(t, 16), openStore(t, t.TempDir()), Config{}, nil)
	j := h.submit(t, spec("runs", func(s *JobSpec) { s.MaxSteps = 1e6 }))
	h.until(t, j.ID, 1)
	h.m.device.command(h.m, func() { h.m.device.trainer.err = errors.New("the device failed") })
	if j, _ := h.wait(t, "anna", j.ID); j.State != Failed || j.Error == nil || !strings.Contains(j.Error.Message, "the device failed") {
		t.Errorf("%+v %+v", j, j.Error)
	}
}

// TestHoldsWhatItNeeds: a paused job, of which there may be many, holds no examples, and one that goes on no copy of where it began.
func TestHoldsWhatItNeeds(t *testing.T) {
	h := openHive(t, demoModel(t, 16), openStore(t, t.TempDir()), Config{}, nil)
	j := h.submit(t, spec("paused", func(s *JobSpec) { s.MaxSteps = 1e6 }))
	look := func(f func(*job)) {
		t.Helper()
		if err := h.m.do(t.Context(), func(done func(error)) { f(h.m.jobs[j.ID]); done(nil) }); err != nil {
			t.Fatal(err)
		}
	}
	h.until(t, j.ID, 1)
	if _, err := h.m.Pause(t.Context(), "anna", j.ID); err != nil {
		t.Fatal(err)
	}
	look(func(j *job) {
		if len(j.options.Train) > 0 {
			t.Error("a paused job holds its examples")
		}
	})
	paused, err := h.m.Resume(t.Context(), "anna", j.ID)
	if err != nil {
		t.Fatal(err)
	}
	h.until(t, j.ID, paused.Progress.Step+1)
	look(func(j *job) {
		if len(j.options.Train) == 0 || j.options.From != nil || j.lane.o.From != nil {
			t.Error("a job that goes on holds its checkpoint, or no examples")
		}
	})
}

// TestCancelledWhileRead: a job that is cancelled while its examples are read is not read to the end.
func TestCancelledWhileRead(t *testing.T) {
	h := openHive(t, demoModel(t, 16), openStore(t, t.TempDir()), Config{}, nil)
	read, reading, goOn := 0, make(chan struct{}), make(chan struct{})
	h.m.d.Encoder = encoderFunc{h.m.d.Encoder, func() {
		if read++; read == 2 {
			close(reading)
			<-goOn
		}
	}}
	j := h.submit(t, spec("read", func(s *JobSpec) { s.Deferred = true }))
	<-reading
	cancelled := make(chan error, 1)
	go func() {
		_, err := h.m.Cancel(context.Background(), "anna", j.ID)
		cancelled <- err
	}()
	h.look(t, j.ID, func(j *job) bool { return j.stop != nil })
	close(goOn)
	if err := <-cancelled; err != nil {
		t.Fatal(err)
	}
	if read != 2 {
		t.Errorf("%d examples were read", read)
	}
}

// TestCancelledWhilePaused: a job that is being paused, which may take long, is cancelled when it has been: whoever deletes its adapter must not find it
// paused afterwards.
func TestCancelledWhilePaused(t *testing.T) {
	var hold atomic.Bool
	h := openHive(t, demoModel(t, 16), openStore(t, t.TempDir()), Config{}, func(u infer.Unit) bool { return hold.Load() && u.Kind == "copy" })
	j := h.submit(t, spec("paused", func(s *JobSpec) { s.MaxSteps = 1e6 }))
	h.until(t, j.ID, 1)
	hold.Store(true)
	paused := h.stopping(t, j.ID)
	cancelled := make(chan error, 1)
	go func() {
		_, err := h.m.Cancel(context.Background(), "anna", j.ID)
		cancelled <- err
	}()
	waits := func(j *job) bool { return len(j.stopped) > 0 || len(cancelled) > 0 }
	h.look(t, j.ID, waits)
	hold.Store(false)
	if err := <-paused; err != nil {
		t.Errorf("the pause: %v", err)
	}
	if err := <-cancelled; err != nil {
		t.Errorf("the cancellation: %v", err)
	}
	if j, err := h.m.Get(t.Context(), "anna", j.ID); err != nil || j.State != Cancelled {
		t.Errorf("%+v, %v", j, err)
	}
}
