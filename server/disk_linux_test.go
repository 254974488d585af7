package server

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"bhive/server/api"
)

// smallDisk is a file system with room for some MiB.
func smallDisk(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Skip("no file system can be mounted here (it takes root): ", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// fill takes the space of a file system but for some bytes; the file it takes it with is returned.
func fill(t *testing.T, dir string, but int64) string {
	t.Helper()
	var s syscall.Statfs_t
	if err := syscall.Statfs(dir, &s); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "filler")
	if err := os.WriteFile(path, make([]byte, int64(s.Bavail)*s.Bsize-but), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestDiskFull: on a disk that is really full, what would be stored is refused with a 507, what is being trained waits for space, nothing is
// half-written, and the server goes on serving.
func TestDiskFull(t *testing.T) {
	disk := smallDisk(t, "8m")
	dir := filepath.Join(disk, "store")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	h := hiveAt(t, dir, hiveConfig{})
	c := h.serve(t, nil)
	files := func() (n int) {
		err := filepath.WalkDir(dir, func(_ string, d os.DirEntry, err error) error {
			if err == nil && !d.IsDir() {
				n++
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	serves := func() {
		t.Helper()
		c.complete(object{"model": "demo", "prompt": "The fox", "max_tokens": 4})
		c.get("/health").want(200)
	}
	c.upload("small.jsonl", lines(pirates()))
	before := files()

	// Some room: a file that does not fit is refused, and leaves nothing.
	filler := fill(t, disk, 96<<10)
	large := strings.Repeat(`{"text":"`+strings.Repeat("fox ", 1000)+"\"}\n", 100)
	r := c.form("purpose", "fine-tune", "file=large.jsonl", large)
	r.wantError(507, "", "disk_full")
	if r.Header.Get("Retry-After") == "" {
		t.Error("a full disk has no Retry-After")
	}
	if n := files(); n != before {
		t.Errorf("%d files in the store, %d before", n, before)
	}
	serves()

	// A training whose version does not fit waits for room.
	const steps = 2
	c.post("/adapters", object{"name": "full", "rank": 16, "max_steps": steps, "batch_size": 2, "examples": pirates()}).want(202)
	for {
		if j := c.adapter("full").Job; j.Step != nil && *j.Step == steps || j.State == "failed" {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if a := c.adapter("full"); a.Version != nil || a.Job.State == "failed" || a.Job.State == "succeeded" {
		t.Errorf("on a full disk: %s", mustJSON(a))
	}
	c.get("/v1/models/full").wantError(404, "model", "model_not_found")

	// No room at all.
	rest, err := os.OpenFile(filler, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	for full := 0; full < 3; { // a try may come and go between a look and a write: it is full where it stays so
		left, tmpErr := os.ReadDir(filepath.Join(dir, "tmp")) // what the version takes while it is tried again is free after it
		if tmpErr != nil {
			t.Fatal(tmpErr)
		}
		if _, err = rest.Write(bytes.Repeat([]byte{1}, 4096)); err == nil || len(left) > 0 {
			full = 0
			continue
		}
		full++
		time.Sleep(20 * time.Millisecond)
	}
	rest.Close()
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	c.form("purpose", "fine-tune", "file=small.jsonl", lines(pirates())+lines(pirates())).wantError(507, "", "disk_full")
	c.post("/adapters", object{"name": "other", "rank": 4, "max_steps": 1, "examples": pirates()}).wantError(507, "", "disk_full")
	c.get("/adapters/other").wantError(404, "name", "adapter_not_found")
	serves()

	// With room again the training ends well, and the store is whole.
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	c.wait("full", "succeeded")
	c.complete(object{"model": "full", "prompt": "The fox", "max_tokens": 4})
	c.upload("large.jsonl", large)
	var list api.FileList
	c.get("/v1/files").want(200).into(&list)
	if len(list.Data) != 2 {
		t.Errorf("files: %s", mustJSON(list))
	}
}
