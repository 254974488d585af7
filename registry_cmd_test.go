package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"bhive/adapters"

	"github.com/google/go-cmp/cmp"
)

// startRedis starts a Redis that ends with the test and returns its URL.
func startRedis(t *testing.T) string {
	t.Helper()
	if _, err := exec.LookPath("redis-server"); err != nil {
		t.Skip("redis-server is not installed; make redis-server installs Debian's package")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	cmd := exec.Command("redis-server", "--port", fmt.Sprint(l.Addr().(*net.TCPAddr).Port), "--bind", "127.0.0.1", "--dir", t.TempDir(), "--save", "")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	for range 1000 {
		if conn, err := net.Dial("tcp", addr); err == nil {
			conn.Close()
			return "redis://" + addr
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("redis-server does not answer")
	return ""
}

func records(t *testing.T, s adapters.Store) (list []adapters.Record) {
	t.Helper()
	if err := s.Export(context.Background(), func(r adapters.Record) error {
		if r.Job == nil || r.Job.Job.State == "succeeded" {
			list = append(list, r)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(list, func(a, b adapters.Record) int { return strings.Compare(a.String(), b.String()) })
	return list
}

// A registry goes to Redis and back to another directory, and is the same there; a second copy changes nothing.
func TestCopyRegistry(t *testing.T) {
	ctx, log := context.Background(), slog.New(slog.DiscardHandler)
	dir, back, url := t.TempDir(), t.TempDir(), startRedis(t)
	open := func(name string) adapters.Store {
		t.Helper()
		s, err := openStore(ctx, name, log)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := open(dir)
	blob := func(tenant, content string) string {
		b, err := s.PutBlob(ctx, tenant, strings.NewReader(content))
		if err != nil {
			t.Fatal(err)
		}
		return b.SHA256
	}
	var errs []error
	note := func(_ any, err error) { errs = append(errs, err) }
	for i := range 3 {
		note(s.Publish(ctx, "t", adapters.Version{Name: "a", Rank: 8, SHA256: blob("t", fmt.Sprint("content ", i))}, adapters.PublishOptions{}))
	}
	note(s.SetLive(ctx, "t", "a", 2))
	note(nil, s.Delete(ctx, "t", "a", 1))
	note(s.CreateJob(ctx, "t", adapters.Job{ID: "done", State: "succeeded", Blobs: []string{blob("t", "examples")}}, json.RawMessage(`"x"`)))
	note(s.CreateJob(ctx, "t", adapters.Job{ID: "waits", State: "queued"}))
	note(s.PutFile(ctx, "", adapters.File{ID: "f", SHA256: blob("", "file")}))
	note(s.PutValue(ctx, "", "k", []byte("v"), 0))
	note(s.PutBasis(ctx, adapters.BasisRecord{BaseHash: "base", SHA256: blob("", "basis")}, ""))
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	want := records(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	copying := func(from, to string) copyReport {
		t.Helper()
		src, dst := open(from), open(to)
		defer src.Close()
		defer dst.Close()
		report, err := copyRegistry(ctx, src, dst)
		if err != nil {
			t.Fatal(err)
		}
		return report
	}
	if r := copying(dir, url); r.copied != 5 || r.kept != 0 || r.unfinished != 1 || r.bytes != int64(9+9+8+4+5) {
		t.Errorf("there: %+v", r)
	}
	if r := copying(dir, url); r.copied != 0 || r.kept != 5 || r.bytes != 0 {
		t.Errorf("there again: %+v", r)
	}
	if r := copying(url, back); r.copied != 5 {
		t.Errorf("and back: %+v", r)
	}
	s = open(back)
	defer s.Close()
	if d := cmp.Diff(want, records(t, s)); d != "" {
		t.Error(d)
	}
	if v, err := s.Get(ctx, "t", "a", 0); err != nil || v.Number != 2 {
		t.Errorf("%+v, %v", v, err)
	}
	r := registryCopyCmd{From: back, To: url}
	if err := r.Run(ctx, log); err == nil { // the directory is open
		t.Error("a directory in use was read")
	}
}
