package finetune

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"bhive/adapters"
	"bhive/infer"
)

// TestRefusedLeavesNothing: of a job that is refused, whyever, the store keeps nothing, and another's examples stay.
func TestRefusedLeavesNothing(t *testing.T) {
	store := openStore(t, t.TempDir())
	h := openHive(t, demoModel(t, 16), store, Config{Unfinished: 1, Limits: Limits{FileBytes: 4096, Examples: 20}}, func(infer.Unit) bool { return true })
	kept := h.submit(t, spec("kept", func(s *JobSpec) { s.MaxSteps = 1e6; s.Tenant = "ben" }))
	var lines *ExamplesError
	broken := errors.New("the client is gone")
	for name, x := range map[string]struct {
		change func(*JobSpec)
		is     func(error) bool
	}{
		"a bad last line": {func(s *JobSpec) { s.Training = strings.NewReader(pirates(9) + "{]") }, func(err error) bool { return errors.As(err, &lines) && lines.Lines[0].Line == 10 }},
		"too many":        {func(s *JobSpec) { s.Training = strings.NewReader(pirates(21)) }, func(err error) bool { return errors.As(err, &lines) }},
		"too large":       {func(s *JobSpec) { s.Training = strings.NewReader(pirates(9) + strings.Repeat("\n", 4096)) }, func(err error) bool { return errors.As(err, &lines) }},
		"inline":          {func(s *JobSpec) { s.Training, s.Examples = nil, []json.RawMessage{json.RawMessage(`{"text": 7}`)} }, func(err error) bool { return errors.As(err, &lines) && lines.Param == "examples" }},
		"broken off":      {func(s *JobSpec) { s.Training = io.MultiReader(strings.NewReader(pirates(9)), iotest.ErrReader(broken)) }, func(err error) bool { return errors.Is(err, broken) }},
		"broken, deferred": {func(s *JobSpec) {
			s.Training, s.Deferred = io.MultiReader(strings.NewReader(pirates(9)), iotest.ErrReader(broken)), true
		}, func(err error) bool { return errors.Is(err, broken) }},
		"bad, but kept": {func(s *JobSpec) { s.Training = strings.NewReader(pirates(8)); s.Tenant, s.Name = "ben", "kept" }, func(err error) bool { return errors.Is(err, adapters.ErrExists) }},
		"one too many":  {func(s *JobSpec) { s.Training = strings.NewReader(pirates(7)); s.Tenant = "ben" }, func(err error) bool { return errors.Is(err, ErrBusy) }},
	} {
		if _, err := h.m.Submit(t.Context(), spec("refused", x.change)); !x.is(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if left, err := store.GC(t.Context(), 0); err != nil || left.Blobs != 0 {
		t.Errorf("what was refused has left %d blobs, %v", left.Blobs, err)
	}
	if j, err := h.m.Get(t.Context(), "ben", kept.ID); err != nil || j.State.Final() {
		t.Errorf("the other job is %s, %v", j.State, err)
	}
}

// endedStore takes a blob and then says that its context has ended, as one does that asks between two reads.
type endedStore struct{ adapters.Store }

func (endedStore) PutBlob(ctx context.Context, _ string, r io.Reader) (adapters.BlobInfo, error) {
	_, err := io.Copy(io.Discard, r)
	return adapters.BlobInfo{}, cmp.Or(ctx.Err(), err)
}

// cutBody ends the request whose body it is.
type cutBody struct {
	end  context.CancelFunc
	with error
}

func (b cutBody) Read([]byte) (int, error) {
	b.end()
	return 0, b.with
}

// TestBodyThatIsCut: a body that breaks off ends the request's context too, and what is told is that it broke off.
func TestBodyThatIsCut(t *testing.T) {
	h := openHive(t, demoModel(t, 16), endedStore{openStore(t, t.TempDir())}, Config{}, nil)
	broken := errors.New("the body ended early")
	for _, deferred := range []bool{false, true} {
		ctx, cancel := context.WithCancel(t.Context())
		_, err := h.m.Submit(ctx, spec("cut", func(s *JobSpec) {
			s.Training, s.Deferred = io.MultiReader(strings.NewReader(pirates(3)), cutBody{cancel, broken}), deferred
		}))
		if !errors.Is(err, broken) {
			t.Errorf("deferred %v: %v", deferred, err)
		}
	}
}
