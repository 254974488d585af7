package finetune

import (
	"context"
	"errors"
	"io"
	"sync/atomic"
	"testing"
	"time"

	"bhive/adapters"
	"bhive/adapters/local"
	"bhive/infer"
)

// begunStore tells when a version's blob is first read.
type begunStore struct {
	*local.Store
	begun chan struct{}
}

type begunReader struct {
	io.Reader
	begun chan struct{}
}

func (r *begunReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if r.begun != nil {
		close(r.begun)
		r.begun = nil
	}
	return n, err
}

func (s *begunStore) PublishBlob(ctx context.Context, tenant string, r io.Reader, v adapters.Version, o adapters.PublishOptions) (adapters.Version, error) {
	return s.Store.PublishBlob(ctx, tenant, &begunReader{r, s.begun}, v, o)
}

// TestPublishedWhileItComes: the store has the blob's beginning before the device has given any of the B, for whichever modules are trained.
func TestPublishedWhileItComes(t *testing.T) {
	model := demoModel(t, 16)
	for _, targets := range [][]string{nil, {"q_proj", "down_proj"}} {
		s := &begunStore{Store: openStore(t, t.TempDir()).(*local.Store), begun: make(chan struct{})}
		h := openHive(t, model, s, Config{}, func(u infer.Unit) bool {
			if u.Kind != "copy" || !u.Due {
				return false
			}
			select {
			case <-s.begun:
				return false
			default:
				return true
			}
		})
		j, _ := h.wait(t, "anna", h.submit(t, spec("early", func(s *JobSpec) { s.TargetModules = targets })).ID)
		if j.State != Succeeded || j.Result.Version != 1 {
			t.Fatalf("%+v %+v", j, j.Error)
		}
		w := loaded(t, h, "anna", "early")
		for p := range adapters.NumProjs {
			trained := targets == nil || p == adapters.Q || p == adapters.Down
			if got := norm(w.Module(0, p), make([]float32, len(w.Module(0, p)))) > 0; got != trained {
				t.Errorf("targets %v: %v holds something: %v", targets, p, got)
			}
		}
		h.stop()
	}
}

// TestEngineGone: when the engine stops while a B is on its way Run ends, nothing is published, and the job goes on in the next process.
func TestEngineGone(t *testing.T) {
	model, store := demoModel(t, 16), openStore(t, t.TempDir())
	var gone atomic.Bool
	h := openHive(t, model, store, Config{Shutdown: time.Millisecond}, func(u infer.Unit) bool {
		if u.Kind == "copy" && u.Due {
			gone.Store(true)
		}
		return gone.Load()
	})
	j := h.submit(t, spec("late", nil))
	for !gone.Load() {
		time.Sleep(time.Millisecond)
	}
	h.stop()
	if r, err := store.GetJob(t.Context(), "anna", j.ID); err != nil || State(r.State) != Running || r.Published != "" {
		t.Fatalf("between processes the job is %+v, %v", r, err)
	}
	if _, err := store.Get(t.Context(), "anna", "late", 0); !errors.Is(err, adapters.ErrNotFound) {
		t.Errorf("it is published: %v", err)
	}
	h = openHive(t, model, store, Config{}, nil)
	if j, _ := h.wait(t, "anna", j.ID); j.State != Succeeded || j.Result.Version != 1 {
		t.Errorf("%+v %+v", j, j.Error)
	}
}

// TestPausedAtTheEnd: a job that is paused during its last optimizer step publishes when it is resumed, and not before.
func TestPausedAtTheEnd(t *testing.T) {
	store := openStore(t, t.TempDir())
	var last, hold atomic.Bool
	steps := 0
	h := openHive(t, demoModel(t, 16), store, Config{}, func(u infer.Unit) bool {
		if u.Kind == "update" && !hold.Load() && !last.Load() {
			if steps++; steps == 6 {
				last.Store(true)
				hold.Store(true)
			}
		}
		return hold.Load()
	})
	j := h.submit(t, spec("paused", nil))
	for !last.Load() {
		time.Sleep(time.Millisecond)
	}
	paused := h.stopping(t, j.ID)
	hold.Store(false)
	if err := <-paused; err != nil {
		t.Fatal(err)
	}
	if got, err := h.m.Get(t.Context(), "anna", j.ID); err != nil || got.State != Paused || got.Progress.Step != 6 {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := store.Get(t.Context(), "anna", "paused", 0); !errors.Is(err, adapters.ErrNotFound) {
		t.Errorf("it is published: %v", err)
	}
	if _, err := h.m.Resume(t.Context(), "anna", j.ID); err != nil {
		t.Fatal(err)
	}
	if j, _ := h.wait(t, "anna", j.ID); j.State != Succeeded || j.Result.Version != 1 {
		t.Errorf("%+v %+v", j, j.Error)
	}
}
