package storetest

import (
	"bytes"
	"context"
	"errors"
	"strings"
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
