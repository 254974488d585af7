package local

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"bhive/adapters"
)

// On a disk that is full, but for the reserve, nothing can be written, and everything be deleted.
func TestFullDiskDeletes(t *testing.T) {
	ctx := context.Background()
	var s *Store
	var full atomic.Bool
	s, err := Open(t.TempDir(), Options{hook: func(point string) error {
		if _, err := os.Stat(s.reservePath()); full.Load() && err == nil && (point == "before commit" || point == "blob created") {
			return syscall.ENOSPC
		}
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	b, err := s.PutBlob(ctx, "", strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	v := adapters.Version{Name: "a", SHA256: b.SHA256}
	for range 2 {
		_, err1 := s.Publish(ctx, "", v, adapters.PublishOptions{})
		err = errors.Join(err, err1)
	}
	_, err1 := s.CreateJob(ctx, "", adapters.Job{ID: "j"})
	_, err2 := s.PutFile(ctx, "", adapters.File{ID: "f", SHA256: b.SHA256})
	_, err3 := s.PutValue(ctx, "", "k", nil, 0)
	if err := errors.Join(err, err1, err2, err3); err != nil {
		t.Fatal(err)
	}
	full.Store(true)
	if _, err := s.Publish(ctx, "", v, adapters.PublishOptions{}); !errors.Is(err, adapters.ErrStoreUnavailable) || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("publishing: %v", err)
	}
	if _, err := s.PutBlob(ctx, "", strings.NewReader("y")); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("putting a blob: %v", err)
	}
	for _, c := range []struct {
		name   string
		delete func() error
	}{
		{"a version", func() error { return s.Delete(ctx, "", "a", 1) }},
		{"an adapter", func() error { return s.Delete(ctx, "", "a", 0) }},
		{"a job", func() error { return s.DeleteJob(ctx, "", "j") }},
		{"a file", func() error { return s.DeleteFile(ctx, "", "f") }},
		{"a value", func() error { return s.DeleteValue(ctx, "", "k") }},
		{"garbage", func() error {
			r, err := s.GC(ctx, 0)
			if err == nil && r.Blobs != 1 {
				err = errors.New("nothing was collected")
			}
			return err
		}},
	} {
		if err := c.delete(); err != nil {
			t.Errorf("deleting %s: %v", c.name, err)
		}
		s.keepReserve() // as the next collection does when there is room
	}
	if st, err := os.Stat(s.reservePath()); err != nil || st.Size() != reserveBytes {
		t.Errorf("the reserve: %v, %v", st, err)
	}
}
