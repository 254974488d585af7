package storetest

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"bhive/adapters"
)

func testJobs(t *testing.T, s adapters.Store) {
	sha := putBlob(t, s, "", "examples")
	raw := func(s string) json.RawMessage { return json.RawMessage(s) }
	j := must(s.CreateJob(ctx, "", adapters.Job{ID: "j1", Kind: "train", State: "queued", Blobs: []string{sha}, Data: raw(`{"n":1}`)}, raw(`"created"`)))
	if j.Rev == 0 || j.CreatedAt.IsZero() || j.Tenant != adapters.DefaultTenant {
		t.Errorf("created: %+v", j)
	}
	_, err := s.CreateJob(ctx, "", adapters.Job{ID: "j1"})
	want(t, err, adapters.ErrExists, "the same id")
	_, err = s.CreateJob(ctx, "", adapters.Job{ID: "j2", Blobs: []string{strings.Repeat("0", 64)}})
	want(t, err, adapters.ErrNotFound, "a job of an unknown blob")
	if got := must(s.GetJob(ctx, "", "j1")); !cmp.Equal(got, j) {
		t.Error(cmp.Diff(j, got))
	}
	stale := j
	j.State, j.Worker, j.Heartbeat = "running", "w1", time.Now().UTC()
	next := must(s.UpdateJob(ctx, "", j, raw(`"started"`), raw(`{"step":1}`)))
	if next.Rev <= j.Rev || next.State != "running" || !next.CreatedAt.Equal(j.CreatedAt) {
		t.Errorf("updated: %+v", next)
	}
	stale.State = "cancelled"
	_, err = s.UpdateJob(ctx, "", stale, raw(`"lost"`))
	want(t, err, adapters.ErrConflict, "a stale update")
	if last := must(s.AppendEvents(ctx, "", "j1", raw(`{"step":2}`))); last != 4 {
		t.Errorf("last event is %d, want 4", last)
	}
	events := func(after int64, limit int) (got []string) {
		for i, e := range must(s.Events(ctx, "", "j1", after, limit)) {
			if e.Seq != after+int64(i)+1 {
				t.Errorf("event %d behind %d", e.Seq, after)
			}
			got = append(got, string(e.Data))
		}
		return got
	}
	if d := cmp.Diff([]string{`"created"`, `"started"`, `{"step":1}`, `{"step":2}`}, events(0, 0)); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]string{`"started"`, `{"step":1}`}, events(1, 2)); d != "" {
		t.Error(d)
	}
	if got := events(4, 0); len(got) != 0 {
		t.Errorf("events behind the last: %v", got)
	}
	must(s.CreateJob(ctx, "", adapters.Job{ID: "j", State: "queued"}, raw(`1`))) // "j" is a prefix of "j1"
	if last := must(s.AppendEvents(ctx, "", "j", raw(`2`))); last != 2 {
		t.Errorf("events of two jobs run together: %d", last)
	}
	must(s.CreateJob(ctx, "two", adapters.Job{ID: "j1"}))
	if a, b, c := must(s.LastEvent(ctx, "", "j1")), must(s.LastEvent(ctx, "", "j")), must(s.LastEvent(ctx, "two", "j1")); a != 4 || b != 2 || c != 0 {
		t.Errorf("the last events are %d, %d and %d, want 4, 2 and none", a, b, c)
	}
	if l := must(s.ListJobs(ctx, "", "queued", "paused")); len(l) != 1 || l[0].ID != "j" {
		t.Errorf("queued: %+v", l)
	}
	if l := must(s.ListJobs(ctx, "")); len(l) != 2 || l[0].ID != "j1" {
		t.Errorf("all, oldest first: %+v", l)
	}
	want(t, s.DeleteJob(ctx, "", "j1"), nil, "delete")
	want(t, s.DeleteJob(ctx, "", "j1"), adapters.ErrNotFound, "delete again")
	_, err = s.Events(ctx, "", "j1", 0, 0)
	want(t, err, adapters.ErrNotFound, "events of a deleted job")
	_, err = s.LastEvent(ctx, "", "j1")
	want(t, err, adapters.ErrNotFound, "the last event of a deleted job")
	_, err = s.AppendEvents(ctx, "", "j1", raw(`1`))
	want(t, err, adapters.ErrNotFound, "logging to a deleted job")
}

func testPublishWithJob(t *testing.T, s adapters.Store) {
	j := must(s.CreateJob(ctx, "", adapters.Job{ID: "j", State: "running"}))
	v := adapters.Version{Name: "a", SHA256: putBlob(t, s, "", "1")}
	stale := j
	stale.Rev--
	_, err := s.Publish(ctx, "", v, adapters.PublishOptions{Job: &stale})
	want(t, err, adapters.ErrConflict, "publishing for a job that another took over")
	_, err = s.Get(ctx, "", "a", 0)
	want(t, err, adapters.ErrNotFound, "after a publication that failed")
	j.State = "succeeded"
	must(s.Publish(ctx, "", v, adapters.PublishOptions{Job: &j, Events: []json.RawMessage{json.RawMessage(`"done"`)}}))
	if got := must(s.GetJob(ctx, "", "j")); got.State != "succeeded" || got.Published != "a@1" {
		t.Errorf("job: %+v", got)
	}
	if e := must(s.Events(ctx, "", "j", 0, 0)); len(e) != 1 {
		t.Errorf("events: %+v", e)
	}
}
