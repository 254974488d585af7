package local

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"bhive/adapters"
)

// A data directory may have any name. One that reads as a pattern stands for itself: its store finds its own blobs, and no other store's.
func TestDirNames(t *testing.T) {
	ctx, root := context.Background(), t.TempDir()
	near, err := Open(filepath.Join(root, "hive-1"), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	b, err := near.PutBlob(ctx, "", strings.NewReader("near"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := near.Publish(ctx, "", adapters.Version{Name: "a", SHA256: b.SHA256}, adapters.PublishOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"hive-?", "hive*", "hive-[1]", "[", `\`} {
		s, err := Open(filepath.Join(root, name), Options{})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if _, err := s.PutBlob(ctx, "", strings.NewReader("loose")); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if r, err := s.GC(ctx, 0); err != nil || r.Blobs != 1 {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
		_ = s.Close()
		if open, err := near.OpenBlob(ctx, "", b.SHA256); err != nil {
			t.Fatalf("%s took another store's blob: %v", name, err)
		} else {
			_ = open.Close()
		}
	}
}

// A new data directory's own name is made durable, and the names of those made on the way to it.
func TestDirIsDurable(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "a", "b")
	if got, want := namedIn(dir), []string{filepath.Join(root, "a"), root, filepath.Dir(root)}; !slices.Equal(got, want) {
		t.Errorf("new: %q, want %q", got, want)
	}
	s, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	_ = s.Close()
	if got, want := namedIn(dir), []string{filepath.Join(root, "a")}; !slices.Equal(got, want) {
		t.Errorf("made: %q, want %q", got, want)
	}
	if got := namedIn("/"); !slices.Equal(got, []string{"/"}) {
		t.Errorf("the root: %q", got)
	}
	if got := namedIn("data"); got[0] != "." {
		t.Errorf("a relative path: %q", got)
	}
}

// While collected blobs are removed from the disk, others are opened and put.
func TestCollectionKeepsNobodyWaiting(t *testing.T) {
	ctx := context.Background()
	var s *Store
	var kept adapters.BlobInfo
	removed := 0
	s, err := Open(t.TempDir(), Options{hook: func(point string) error {
		if point != "blob removed" {
			return nil
		}
		removed++
		used := make(chan error, 1)
		go func() {
			b, err := s.OpenBlob(ctx, "", kept.SHA256)
			if err == nil {
				_ = b.Close()
				_, err = s.PutBlob(ctx, "", strings.NewReader("new"))
			}
			used <- err
		}()
		select {
		case err := <-used:
			return err
		case <-time.After(20 * time.Second): // not for ever
			return errors.New("blobs can be neither opened nor put")
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if kept, err = s.PutBlob(ctx, "", strings.NewReader("kept")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.PutFile(ctx, "", adapters.File{ID: "f", SHA256: kept.SHA256}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.PutBlob(ctx, "", strings.NewReader("loose")); err != nil {
		t.Fatal(err)
	}
	if r, err := s.GC(ctx, 0); err != nil || r.Blobs != 1 || removed != 1 {
		t.Errorf("%+v, %d removed, %v", r, removed, err)
	}
}
