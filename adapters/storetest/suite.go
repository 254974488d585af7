package storetest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"bhive/adapters"
)

// Run runs the whole conformance suite; open makes an empty store and closes it at the end of the test.
func Run(t *testing.T, open func(t testing.TB) adapters.Store) {
	RunCases(t, open)
	t.Run("Model", func(t *testing.T) { testModel(t, open) })
}

// RunCases is Run without the long random test against a model: for further settings of a store that Run has passed.
func RunCases(t *testing.T, open func(t testing.TB) adapters.Store) {
	for _, c := range []struct {
		name string
		test func(*testing.T, adapters.Store)
	}{
		{"Blobs", testBlobs}, {"Versions", testVersions}, {"Tenants", testTenants}, {"Names", testNames}, {"Feed", testFeed},
		{"Jobs", testJobs}, {"PublishWithJob", testPublishWithJob}, {"Files", testFiles}, {"Values", testValues}, {"Basis", testBasis},
		{"GC", testGC}, {"Concurrent", testConcurrent}, {"Contexts", testContexts}, {"Closed", testClosed}, {"BadRecords", testBadRecords},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, open(t)) })
	}
	t.Run("Transfer", func(t *testing.T) { testTransfer(t, open) })
}

var ctx = context.Background()

func want(t testing.TB, err, kind error, what string) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Errorf("%s: want %v, got %v", what, kind, err)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func putBlob(t testing.TB, s adapters.Store, tenant, content string) string {
	t.Helper()
	b, err := s.PutBlob(ctx, tenant, strings.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	if sum := sha256.Sum256([]byte(content)); b.SHA256 != hex.EncodeToString(sum[:]) || b.Bytes != int64(len(content)) {
		t.Fatalf("blob %q is %+v", content, b)
	}
	return b.SHA256
}

func publish(t testing.TB, s adapters.Store, tenant, name, content string) adapters.Version {
	t.Helper()
	v, err := s.Publish(ctx, tenant, adapters.Version{Name: name, Rank: 8, Alpha: 16, Scaling: 2, SHA256: putBlob(t, s, tenant, content)}, adapters.PublishOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func readBlob(s adapters.Store, tenant, sha string) (string, error) {
	b, err := s.OpenBlob(ctx, tenant, sha)
	if err != nil {
		return "", err
	}
	defer b.Close()
	raw, err := io.ReadAll(io.NewSectionReader(b, 0, b.Size()))
	return string(raw), err
}

type failing struct{ n int }

var errSource = errors.New("the source broke")

func (f *failing) Read(p []byte) (int, error) {
	if f.n--; f.n < 0 {
		return 0, errSource
	}
	return len(p), nil
}

func testBlobs(t *testing.T, s adapters.Store) {
	big := strings.Repeat("0123456789", 50000)
	for _, c := range []string{"", "x", big, "x"} {
		sha := putBlob(t, s, "", c)
		got, err := readBlob(s, "", sha)
		if err != nil || got != c {
			t.Errorf("%d bytes came back as %d, %v", len(c), len(got), err)
		}
	}
	_, err := s.PutBlob(ctx, "", &failing{3})
	want(t, err, errSource, "a source that breaks")
	if errors.Is(err, adapters.ErrStoreUnavailable) {
		t.Error("the source's error is taken for the store's")
	}
	_, err = readBlob(s, "", strings.Repeat("0", 64))
	want(t, err, adapters.ErrNotFound, "an unknown blob")
	for _, sha := range []string{"", "..", "../../../etc/passwd", strings.Repeat("A", 64)} {
		_, err = readBlob(s, "", sha)
		want(t, err, adapters.ErrInvalidName, "blob "+sha)
	}
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

func testFiles(t *testing.T, s adapters.Store) {
	f := must(s.PutFile(ctx, "", adapters.File{ID: "file-1", Purpose: "fine-tune", Name: "../my data.jsonl", SHA256: putBlob(t, s, "", "abc")}))
	if f.Bytes != 3 || f.CreatedAt.IsZero() {
		t.Errorf("%+v", f)
	}
	_, err := s.PutFile(ctx, "", f)
	want(t, err, adapters.ErrExists, "the same id")
	_, err = s.PutFile(ctx, "", adapters.File{ID: "f2", SHA256: strings.Repeat("0", 64)})
	want(t, err, adapters.ErrNotFound, "a file without a blob")
	if got := must(s.GetFile(ctx, "", "file-1")); !cmp.Equal(got, f) {
		t.Error(cmp.Diff(f, got))
	}
	if l := must(s.ListFiles(ctx, "")); len(l) != 1 {
		t.Errorf("%+v", l)
	}
	want(t, s.DeleteFile(ctx, "", "file-1"), nil, "delete")
	want(t, s.DeleteFile(ctx, "", "file-1"), adapters.ErrNotFound, "delete again")
}

func testValues(t *testing.T, s adapters.Store) {
	_, err := s.PutValue(ctx, "", "k", []byte("x"), 7)
	want(t, err, adapters.ErrConflict, "a revision of what is absent")
	r1 := must(s.PutValue(ctx, "", "k", []byte("one"), 0))
	_, err = s.PutValue(ctx, "", "k", []byte("two"), 0)
	want(t, err, adapters.ErrExists, "it is there")
	r2 := must(s.PutValue(ctx, "", "k", []byte("two"), r1))
	_, err = s.PutValue(ctx, "", "k", []byte("three"), r1)
	want(t, err, adapters.ErrConflict, "a stale revision")
	v, rev, err := s.GetValue(ctx, "", "k")
	if err != nil || string(v) != "two" || rev != r2 {
		t.Errorf("%q, %d, %v", v, rev, err)
	}
	must(s.PutValue(ctx, "", "k", nil, adapters.AnyRev))
	if v, _, err := s.GetValue(ctx, "", "k"); err != nil || len(v) != 0 {
		t.Errorf("%q, %v", v, err)
	}
	want(t, s.DeleteValue(ctx, "", "k"), nil, "delete")
	want(t, s.DeleteValue(ctx, "", "k"), adapters.ErrNotFound, "delete again")
	_, err = s.PutValue(ctx, "", "k", nil, r2)
	want(t, err, adapters.ErrConflict, "a revision from before the deletion")
}

func testBasis(t *testing.T, s adapters.Store) {
	_, err := s.GetBasis(ctx, "base")
	want(t, err, adapters.ErrNotFound, "no basis yet")
	b := adapters.BasisRecord{BaseHash: "base", Fingerprint: "f1", Method: adapters.Orthonormal, R: 64, SHA256: strings.Repeat("0", 64)}
	_, err = s.PutBasis(ctx, b, "")
	want(t, err, adapters.ErrNotFound, "a basis without a blob")
	b.SHA256 = putBlob(t, s, "", "basis")
	first := must(s.PutBasis(ctx, b, ""))
	b.Fingerprint = "f2"
	if got := must(s.PutBasis(ctx, b, "")); !cmp.Equal(got, first) {
		t.Errorf("the first basis did not stay: %+v", got)
	}
	_, err = s.PutBasis(ctx, b, "f0")
	want(t, err, adapters.ErrConflict, "replacing another basis")
	must(s.PutBasis(ctx, b, "f1"))
	if got := must(s.GetBasis(ctx, "base")); got.Fingerprint != "f2" || got.Bytes != 5 {
		t.Errorf("%+v", got)
	}
}

func testGC(t *testing.T, s adapters.Store) {
	v := publish(t, s, "", "a", "version")
	job := must(s.CreateJob(ctx, "", adapters.Job{ID: "j", Blobs: []string{putBlob(t, s, "", "job")}}))
	file := must(s.PutFile(ctx, "", adapters.File{ID: "f", SHA256: putBlob(t, s, "", "file")}))
	basis := must(s.PutBasis(ctx, adapters.BasisRecord{BaseHash: "b", Fingerprint: "f", SHA256: putBlob(t, s, "", "basis")}, ""))
	loose := putBlob(t, s, "", "loose")
	putBlob(t, s, "other", "version") // nobody of that tenant refers to it, but the file is shared
	if r := must(s.GC(ctx, time.Hour)); r.Blobs != 0 {
		t.Errorf("within the grace: %+v", r)
	}
	open, err := s.OpenBlob(ctx, "", loose)
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	if r := must(s.GC(ctx, 0)); r.Blobs != 1 || r.Bytes != 5 {
		t.Errorf("%+v", r)
	}
	if raw, err := io.ReadAll(io.NewSectionReader(open, 0, open.Size())); err != nil || string(raw) != "loose" {
		t.Errorf("an open blob after its collection: %q, %v", raw, err)
	}
	_, err = readBlob(s, "", loose)
	want(t, err, adapters.ErrNotFound, "a collected blob")
	_, err = readBlob(s, "other", v.SHA256)
	want(t, err, adapters.ErrNotFound, "another tenant's loose blob")
	_, err = s.Publish(ctx, "", adapters.Version{Name: "x", SHA256: loose}, adapters.PublishOptions{})
	want(t, err, adapters.ErrNotFound, "publishing a collected blob")
	for _, sha := range []string{v.SHA256, job.Blobs[0], file.SHA256, basis.SHA256} {
		if _, err := readBlob(s, "", sha); err != nil {
			t.Error(err)
		}
	}
	want(t, s.Delete(ctx, "", "a", 0), nil, "delete")
	want(t, s.DeleteJob(ctx, "", "j"), nil, "delete")
	want(t, s.DeleteFile(ctx, "", "f"), nil, "delete")
	if r := must(s.GC(ctx, 0)); r.Blobs != 3 {
		t.Errorf("after deletions: %+v", r)
	}
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

func testContexts(t *testing.T, s adapters.Store) {
	gone, cancel := context.WithCancel(ctx)
	cancel()
	_, err := s.PutBlob(gone, "", bytes.NewReader([]byte("x")))
	want(t, err, context.Canceled, "PutBlob")
	_, err = s.List(gone, "")
	want(t, err, context.Canceled, "List")
	_, err = s.CreateJob(gone, "", adapters.Job{ID: "j"})
	want(t, err, context.Canceled, "CreateJob")
	_, err = s.GetJob(ctx, "", "j")
	want(t, err, adapters.ErrNotFound, "a job of a cancelled call")
}

func testClosed(t *testing.T, s adapters.Store) {
	want(t, s.Ping(ctx), nil, "Ping")
	cursor := must(s.Cursor(ctx))
	waiting := make(chan error, 1)
	go func() { _, err := s.Watch(ctx, cursor); waiting <- err }()
	time.Sleep(10 * time.Millisecond)
	want(t, s.Close(), nil, "Close")
	want(t, s.Close(), nil, "Close again")
	want(t, <-waiting, adapters.ErrClosed, "a Watch that waited")
	want(t, s.Ping(ctx), adapters.ErrClosed, "Ping")
	_, err := s.List(ctx, "")
	want(t, err, adapters.ErrClosed, "List")
	_, err = s.PutBlob(ctx, "", strings.NewReader("x"))
	want(t, err, adapters.ErrClosed, "PutBlob")
}
