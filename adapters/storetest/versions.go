package storetest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"

	"bhive/adapters"
)

func publish(t testing.TB, s adapters.Store, tenant, name, content string) adapters.Version {
	t.Helper()
	v, err := s.Publish(ctx, tenant, adapters.Version{Name: name, Rank: 8, Alpha: 16, Scaling: 2, SHA256: putBlob(t, s, tenant, content)}, adapters.PublishOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// testPublishBlob holds a store that puts and publishes in one to what Publish does, and to leaving nothing where it is refused.
func testPublishBlob(t *testing.T, s adapters.Store) {
	p, ok := s.(adapters.BlobPublisher)
	if !ok {
		return
	}
	content := strings.Repeat("a whole B. ", 100<<10) // of several pieces
	v := adapters.Version{Name: "whole", Rank: 8, Alpha: 16, Scaling: 2}
	got := must(p.PublishBlob(ctx, "other", strings.NewReader(content), v, adapters.PublishOptions{CheckLive: true}))
	if sum := sha256.Sum256([]byte(content)); got.SHA256 != hex.EncodeToString(sum[:]) || got.Number != 1 || got.Tenant != "other" || got.Bytes != int64(len(content)) || got.CreatedAt.IsZero() {
		t.Errorf("published in one: %+v", got)
	}
	if read, err := readBlob(s, "other", got.SHA256); err != nil || read != content {
		t.Errorf("published in one: %d bytes, %v", len(read), err)
	}
	if live := must(s.Get(ctx, "other", "whole", 0)); !cmp.Equal(live, got) {
		t.Error(cmp.Diff(got, live))
	}
	_, err := p.PublishBlob(ctx, "other", strings.NewReader("refused"), v, adapters.PublishOptions{CheckLive: true})
	want(t, err, adapters.ErrExists, "publishing in one under a name that is taken")
	sum := sha256.Sum256([]byte("refused"))
	_, err = s.OpenBlob(ctx, "other", hex.EncodeToString(sum[:]))
	want(t, err, adapters.ErrNotFound, "the blob of what was refused")
	_, err = p.PublishBlob(ctx, "no/tenant", strings.NewReader("x"), v, adapters.PublishOptions{})
	want(t, err, adapters.ErrInvalidName, "publishing in one for no tenant")
	broken := errors.New("the content ends early")
	_, err = p.PublishBlob(ctx, "other", io.MultiReader(strings.NewReader(content), iotest.ErrReader(broken)), v, adapters.PublishOptions{})
	want(t, err, broken, "publishing in one what cannot be read")
	want(t, s.Delete(ctx, "other", "whole", 0), nil, "deleting what was published in one")
}

func testVersions(t *testing.T, s adapters.Store) {
	_, err := s.Get(ctx, "", "a", 0)
	want(t, err, adapters.ErrNotFound, "before anything is published")
	_, err = s.Publish(ctx, "", adapters.Version{Name: "a", SHA256: strings.Repeat("0", 64)}, adapters.PublishOptions{})
	want(t, err, adapters.ErrNotFound, "publishing without a blob")

	one := publish(t, s, "", "a", "1")
	if one.Number != 1 || one.Tenant != adapters.DefaultTenant || one.Bytes != 1 || one.CreatedAt.IsZero() {
		t.Errorf("first version: %+v", one)
	}
	two := publish(t, s, "", "a", "2")
	if got := must(s.Get(ctx, "", "a", 0)); !cmp.Equal(got, two) {
		t.Error(cmp.Diff(two, got))
	}
	if got := must(s.Get(ctx, "default", "a", 1)); !cmp.Equal(got, one) {
		t.Error(cmp.Diff(one, got))
	}
	if got := must(s.Versions(ctx, "", "a")); !cmp.Equal(got, []adapters.Version{one, two}) {
		t.Errorf("versions: %+v", got)
	}
	// Expectations.
	v := adapters.Version{Name: "a", SHA256: one.SHA256}
	_, err = s.Publish(ctx, "", v, adapters.PublishOptions{CheckLive: true, ExpectLive: 1})
	want(t, err, adapters.ErrConflict, "a stale parent")
	_, err = s.Publish(ctx, "", v, adapters.PublishOptions{CheckLive: true})
	want(t, err, adapters.ErrExists, "a name that is taken")
	v.Name = "b"
	if got := must(s.Publish(ctx, "", v, adapters.PublishOptions{CheckLive: true})); got.Number != 1 {
		t.Errorf("b: %+v", got)
	}
	testPublishBlob(t, s)
	// Rollback.
	if got := must(s.SetLive(ctx, "", "a", 1)); !cmp.Equal(got, one) {
		t.Error(cmp.Diff(one, got))
	}
	if got := must(s.Get(ctx, "", "a", 0)); got.Number != 1 {
		t.Errorf("live after rollback: %d", got.Number)
	}
	_, err = s.SetLive(ctx, "", "a", 3)
	want(t, err, adapters.ErrNotFound, "SetLive of an unknown version")
	list := must(s.List(ctx, ""))
	if len(list) != 2 || list[0].Name != "a" || list[0].Live != 1 || !cmp.Equal(list[0].Versions, []int{1, 2}) || list[0].Bytes != 2 {
		t.Errorf("list: %+v", list)
	}
	// Delete.
	want(t, s.Delete(ctx, "", "a", 1), adapters.ErrConflict, "deleting the live version")
	want(t, s.Delete(ctx, "", "a", 9), adapters.ErrNotFound, "deleting an unknown version")
	want(t, s.Delete(ctx, "", "a", 2), nil, "deleting a version")
	_, err = s.Get(ctx, "", "a", 2)
	want(t, err, adapters.ErrNotFound, "a deleted version")
	want(t, s.Delete(ctx, "", "a", 0), nil, "deleting a name")
	want(t, s.Delete(ctx, "", "a", 0), adapters.ErrNotFound, "deleting it again")
	_, err = s.Versions(ctx, "", "a")
	want(t, err, adapters.ErrNotFound, "versions of a deleted name")
	if got := publish(t, s, "", "a", "3"); got.Number != 3 {
		t.Errorf("a number was reused: %d", got.Number)
	}
	want(t, s.Delete(ctx, "", "a", 3), nil, "deleting the only version")
	if list := must(s.List(ctx, "")); len(list) != 1 || list[0].Name != "b" {
		t.Errorf("list: %+v", list)
	}
}

func testTenants(t *testing.T, s adapters.Store) {
	v := publish(t, s, "one", "a", "1")
	_, err := s.Get(ctx, "two", "a", 0)
	want(t, err, adapters.ErrNotFound, "another tenant's adapter")
	_, err = readBlob(s, "two", v.SHA256)
	want(t, err, adapters.ErrNotFound, "another tenant's blob")
	_, err = s.Publish(ctx, "two", adapters.Version{Name: "a", SHA256: v.SHA256}, adapters.PublishOptions{})
	want(t, err, adapters.ErrNotFound, "publishing another tenant's blob")
	want(t, s.Delete(ctx, "two", "a", 0), adapters.ErrNotFound, "deleting another tenant's adapter")
	_, err = s.SetLive(ctx, "two", "a", 1)
	want(t, err, adapters.ErrNotFound, "rolling back another tenant's adapter")
	must(s.CreateJob(ctx, "one", adapters.Job{ID: "j", State: "queued"}))
	_, err = s.GetJob(ctx, "two", "j")
	want(t, err, adapters.ErrNotFound, "another tenant's job")
	_, err = s.UpdateJob(ctx, "two", adapters.Job{ID: "j", Rev: 1})
	want(t, err, adapters.ErrNotFound, "updating another tenant's job")
	_, err = s.Events(ctx, "two", "j", 0, 0)
	want(t, err, adapters.ErrNotFound, "another tenant's events")
	must(s.CreateJob(ctx, "two", adapters.Job{ID: "j", State: "queued"})) // ids are a tenant's own
	must(s.PutFile(ctx, "one", adapters.File{ID: "f", SHA256: v.SHA256}))
	_, err = s.GetFile(ctx, "two", "f")
	want(t, err, adapters.ErrNotFound, "another tenant's file")
	must(s.PutValue(ctx, "one", "k", []byte("v"), 0))
	_, _, err = s.GetValue(ctx, "two", "k")
	want(t, err, adapters.ErrNotFound, "another tenant's value")
	publish(t, s, "on", "e.a", "2") // keys must not run together
	publish(t, s, "", "a", "3")
	if l := must(s.List(ctx, "one")); len(l) != 1 {
		t.Errorf("one's adapters: %+v", l)
	}
	if l := must(s.List(ctx, adapters.AllTenants)); len(l) != 3 {
		t.Errorf("all adapters: %+v", l)
	}
	if l := must(s.ListJobs(ctx, adapters.AllTenants)); len(l) != 2 {
		t.Errorf("all jobs: %+v", l)
	}
	if l := must(s.ListFiles(ctx, adapters.AllTenants)); len(l) != 1 {
		t.Errorf("all files: %+v", l)
	}
}

func testNames(t *testing.T, s adapters.Store) {
	sha := putBlob(t, s, "", "x")
	for _, bad := range []string{"..", "../x", "a/b", "A", "a\x00b", " ", "*", strings.Repeat("a", 64)} {
		_, err := s.Publish(ctx, "", adapters.Version{Name: bad, SHA256: sha}, adapters.PublishOptions{})
		want(t, err, adapters.ErrInvalidName, "publishing "+bad)
		_, err = s.Get(ctx, bad, "a", 0)
		want(t, err, adapters.ErrInvalidName, "tenant "+bad)
		_, err = s.CreateJob(ctx, "", adapters.Job{ID: bad})
		want(t, err, adapters.ErrInvalidName, "job "+bad)
		_, err = s.PutFile(ctx, "", adapters.File{ID: bad, SHA256: sha})
		want(t, err, adapters.ErrInvalidName, "file "+bad)
		_, err = s.PutValue(ctx, "", bad, nil, 0)
		want(t, err, adapters.ErrInvalidName, "value "+bad)
		_, err = s.PutBlob(ctx, bad, strings.NewReader(""))
		want(t, err, adapters.ErrInvalidName, "blob of tenant "+bad)
	}
}

func testFeed(t *testing.T, s adapters.Store) {
	start := must(s.Cursor(ctx))
	publish(t, s, "", "a", "1")
	publish(t, s, "t", "b", "2")
	publish(t, s, "", "a", "3")
	must(s.SetLive(ctx, "", "a", 1))
	want(t, s.Delete(ctx, "", "a", 2), nil, "delete")
	want(t, s.Delete(ctx, "", "a", 0), nil, "delete")
	type change struct {
		Kind   adapters.ChangeKind
		Ref    string
		Number int
	}
	follow := func(cursor string, n int) (got []change, end string) {
		for len(got) < n {
			changes, err := s.Watch(ctx, cursor)
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range changes {
				got = append(got, change{c.Kind, c.Tenant + "/" + c.Name, c.Number})
				cursor = c.Cursor
			}
		}
		return got, cursor
	}
	all := []change{{adapters.Published, "default/a", 1}, {adapters.Published, "t/b", 1}, {adapters.Published, "default/a", 2},
		{adapters.LiveMoved, "default/a", 1}, {adapters.VersionDeleted, "default/a", 2}, {adapters.AdapterDeleted, "default/a", 0}}
	got, end := follow(start, 6)
	if d := cmp.Diff(all, got); d != "" {
		t.Error(d)
	}
	if c := must(s.Cursor(ctx)); c != end {
		t.Errorf("Cursor is %q, the last change's %q", c, end)
	}
	if got, _ := follow("", 6); !cmp.Equal(got, all) {
		t.Error("the feed's beginning is lost")
	}
	// Watch waits for the next change, and ends with its context.
	type result struct {
		changes []adapters.Change
		err     error
	}
	waiting := make(chan result, 1)
	go func() {
		c, err := s.Watch(ctx, end)
		waiting <- result{c, err}
	}()
	select {
	case r := <-waiting:
		t.Fatalf("Watch did not wait: %+v", r)
	case <-time.After(20 * time.Millisecond):
	}
	publish(t, s, "", "c", "4")
	if r := <-waiting; r.err != nil || len(r.changes) != 1 || r.changes[0].Name != "c" {
		t.Errorf("woken with %+v", r)
	}
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	_, err := s.Watch(short, must(s.Cursor(ctx)))
	want(t, err, context.DeadlineExceeded, "Watch with a deadline")
	_, err = s.Watch(ctx, "not a cursor")
	want(t, err, adapters.ErrCursorLost, "a cursor of another feed")
}

// Publications of one name from many goroutines get numbers of their own; GC meanwhile takes nothing that is used.
func testConcurrent(t *testing.T, s adapters.Store) {
	const workers, each = 6, 8
	var wg sync.WaitGroup
	var mu sync.Mutex
	numbers := map[int]string{}
	for w := range workers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := range each {
				sha := putBlob(t, s, "", fmt.Sprintf("%d %d", w, i))
				v, err := s.Publish(ctx, "", adapters.Version{Name: "a", SHA256: sha}, adapters.PublishOptions{})
				if err != nil {
					t.Error(err)
					continue
				}
				mu.Lock()
				if numbers[v.Number] != "" {
					t.Errorf("number %d was given twice", v.Number)
				}
				numbers[v.Number] = sha
				mu.Unlock()
			}
		}()
	}
	wg.Add(2)
	go func() {
		defer wg.Done()
		for range 10 {
			if _, err := s.GC(ctx, time.Minute); err != nil {
				t.Error(err)
			}
		}
	}()
	won := 0
	go func() { // exactly one of those who update one revision wins
		defer wg.Done()
		j := must(s.CreateJob(ctx, "", adapters.Job{ID: "j"}))
		var inner sync.WaitGroup
		for range 4 {
			inner.Add(1)
			go func() {
				defer inner.Done()
				if _, err := s.UpdateJob(ctx, "", j); err == nil {
					mu.Lock()
					won++
					mu.Unlock()
				} else if !errors.Is(err, adapters.ErrConflict) {
					t.Error(err)
				}
			}()
		}
		inner.Wait()
	}()
	wg.Wait()
	if won != 1 {
		t.Errorf("%d updates of one revision succeeded", won)
	}
	for _, v := range must(s.Versions(ctx, "", "a")) {
		if numbers[v.Number] != v.SHA256 {
			t.Errorf("version %d has blob %s, want %s", v.Number, v.SHA256, numbers[v.Number])
		}
		if _, err := readBlob(s, "", v.SHA256); err != nil {
			t.Error(err)
		}
	}
	if len(numbers) != workers*each {
		t.Errorf("%d versions", len(numbers))
	}
}
