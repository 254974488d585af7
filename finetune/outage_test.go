package finetune

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"bhive/adapters"
)

// awayStore is a store that cannot be reached while away is true.
type awayStore struct {
	adapters.Store
	away atomic.Bool
	full atomic.Bool // it takes no blobs
}

func (s *awayStore) reach() error {
	if s.away.Load() {
		return fmt.Errorf("a test: %w", adapters.ErrStoreUnavailable)
	}
	return nil
}

func (s *awayStore) PutBlob(ctx context.Context, tenant string, r io.Reader) (adapters.BlobInfo, error) {
	if err := s.reach(); err != nil {
		return adapters.BlobInfo{}, err
	}
	if s.full.Load() {
		return adapters.BlobInfo{}, fmt.Errorf("a test: disk full: %w", adapters.ErrStoreUnavailable)
	}
	return s.Store.PutBlob(ctx, tenant, r)
}

func (s *awayStore) OpenBlob(ctx context.Context, tenant, sha string) (adapters.BlobReader, error) {
	if err := s.reach(); err != nil {
		return nil, err
	}
	return s.Store.OpenBlob(ctx, tenant, sha)
}

func (s *awayStore) UpdateJob(ctx context.Context, tenant string, j adapters.Job, events ...json.RawMessage) (adapters.Job, error) {
	if err := s.reach(); err != nil {
		return j, err
	}
	return s.Store.UpdateJob(ctx, tenant, j, events...)
}

func (s *awayStore) AppendEvents(ctx context.Context, tenant, id string, events ...json.RawMessage) (int64, error) {
	if err := s.reach(); err != nil {
		return 0, err
	}
	return s.Store.AppendEvents(ctx, tenant, id, events...)
}

// TestStopWhileStoreIsAway: what is not durable is not acknowledged, and the job goes on as if it had not been asked for.
func TestStopWhileStoreIsAway(t *testing.T) {
	store := &awayStore{Store: openStore(t, t.TempDir())}
	h := openHive(t, demoModel(t, 16), store, Config{Trainer: TrainerConfig{Lanes: 1, BatchTokens: 256}}, nil)
	long := func(s *JobSpec) { s.MaxSteps = 1e6 }
	running, queued := h.submit(t, spec("running", long)), h.submit(t, spec("queued", long))
	h.until(t, running.ID, 1)
	away := func(what string, id string, want State, f func(context.Context, string, string) (Job, error)) {
		t.Helper()
		store.away.Store(true)
		if _, err := f(t.Context(), "anna", id); !errors.Is(err, adapters.ErrStoreUnavailable) {
			t.Errorf("%s while the store is away: %v", what, err)
		}
		if j, err := h.m.Get(t.Context(), "anna", id); err != nil || j.State != want && (want != Running || j.State == Paused || j.State.Final()) {
			t.Errorf("after %s it is %s, %v", what, j.State, err)
		}
		store.away.Store(false)
	}
	away("a pause", queued.ID, Queued, h.m.Pause)
	if _, err := h.m.Pause(t.Context(), "anna", queued.ID); err != nil {
		t.Fatal(err)
	}
	away("a resumption", queued.ID, Paused, h.m.Resume)
	for what, f := range map[string]func(context.Context, string, string) (Job, error){"a pause": h.m.Pause, "a cancellation": h.m.Cancel} {
		away(what, running.ID, Running, f)
		j, err := h.m.Get(t.Context(), "anna", running.ID)
		if err != nil {
			t.Fatal(err)
		}
		h.until(t, running.ID, j.Progress.Step+1) // it trains on
	}
	if j, err := h.m.Cancel(t.Context(), "anna", running.ID); err != nil || j.State != Cancelled {
		t.Errorf("%+v, %v", j, err)
	}
}

// TestCancelWhileItWaitsForRoom: a job whose B is not stored for want of room is cancelled when it is asked to be, and publishes nothing later.
func TestCancelWhileItWaitsForRoom(t *testing.T) {
	store := &awayStore{Store: openStore(t, t.TempDir())}
	var hold atomic.Bool
	hold.Store(true)
	h := openHive(t, demoModel(t, 16), store, Config{}, held(&hold))
	j := h.submit(t, spec("large", nil))
	store.full.Store(true)
	hold.Store(false)
	h.look(t, j.ID, func(j *job) bool { return j.finishing })
	if _, err := h.m.Pause(t.Context(), "anna", j.ID); !errors.Is(err, ErrState) {
		t.Errorf("pausing it: %v", err)
	}
	if got, err := h.m.Cancel(t.Context(), "anna", j.ID); err != nil || got.State != Cancelled {
		t.Errorf("%+v, %v", got, err)
	}
	store.full.Store(false)
	h.stop() // what would be tried again is
	if r, err := store.GetJob(t.Context(), "anna", j.ID); err != nil || State(r.State) != Cancelled {
		t.Errorf("%+v, %v", r, err)
	}
	if _, err := store.Get(t.Context(), "anna", "large", 0); !errors.Is(err, adapters.ErrNotFound) {
		t.Errorf("it is published: %v", err)
	}
}

// TestFailureWhileStoreIsAway: the reason of a failure outlives an outage of the store.
func TestFailureWhileStoreIsAway(t *testing.T) {
	store := &awayStore{Store: openStore(t, t.TempDir())}
	h := openHive(t, demoModel(t, 16), store, Config{}, nil)
	first := true
	h.m.d.Encoder = encoderFunc{h.m.d.Encoder, func() {
		if first { // the example that is refused is read
			first = false
			store.away.Store(true)
		}
	}}
	j := h.submit(t, spec("refused", func(s *JobSpec) {
		s.Training, s.Deferred = strings.NewReader(`{"prompt":"a","completion":"b"}`+"\n{]"), true
	}))
	h.settled(t, j.ID)
	store.away.Store(false)
	got, _ := h.wait(t, "anna", j.ID)
	if got.State != Failed || got.Error == nil || got.Error.Code != "invalid_training_file" || len(got.Error.Lines) != 1 {
		t.Errorf("%+v %+v", got, got.Error)
	}
}

// encoderFunc calls before whenever turns are rendered.
type encoderFunc struct {
	Encoder
	before func()
}

func (e encoderFunc) Chat(turns []Message, tools []json.RawMessage, most int) ([]int, []bool, error) {
	e.before()
	return e.Encoder.Chat(turns, tools, most)
}

// TestKeepsItsLaneInAnOutage: a job whose checkpoint cannot be stored gives its lane to nobody.
func TestKeepsItsLaneInAnOutage(t *testing.T) {
	store := &awayStore{Store: openStore(t, t.TempDir())}
	h := openHive(t, demoModel(t, 16), store, Config{Trainer: TrainerConfig{Lanes: 1, BatchTokens: 256}, ProgressEvery: time.Nanosecond, Turn: time.Hour}, nil)
	j := h.submit(t, spec("runs", func(s *JobSpec) { s.MaxSteps = 1e6 }))
	h.until(t, j.ID, 1)
	ben := h.submit(t, spec("waits", of("ben")))
	store.away.Store(true)
	h.look(t, j.ID, func(j *job) bool { return len(j.pending) > 0 })
	turn := func(d time.Duration) (leaves bool) {
		t.Helper()
		if err := h.m.do(t.Context(), func(done func(error)) {
			h.m.c.Turn = d
			h.m.start(t.Context())
			leaves = h.m.jobs[j.ID].stop != nil
			done(nil)
		}); err != nil {
			t.Fatal(err)
		}
		return leaves
	}
	if turn(time.Nanosecond) {
		t.Error("it leaves while the store is away")
	}
	turn(time.Hour)
	store.away.Store(false)
	h.look(t, j.ID, func(j *job) bool { return len(j.pending) == 0 })
	turn(time.Nanosecond)
	if j, _ := h.wait(t, "ben", ben.ID); j.State != Succeeded {
		t.Errorf("%+v %+v", j, j.Error)
	}
}
