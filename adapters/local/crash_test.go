package local

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"bhive/adapters"
	"bhive/adapters/storetest"
)

// The test binary runs itself as a child that opens a store, runs the script and does what TestMain's variables say.
const (
	envDir   = "BHIVE_TEST_STORE"     // directory of the child's store
	envCrash = "BHIVE_TEST_CRASH"     // number of the write point at which the child kills itself
	envFull  = "BHIVE_TEST_FILE_SIZE" // bytes at which a file can grow no more
	envFirst = "BHIVE_TEST_FIRST"     // the same, already when the store is opened
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(envDir); dir != "" {
		os.Exit(child(dir))
	}
	os.Exit(m.Run())
}

func child(dir string) int {
	crash, _ := strconv.Atoi(os.Getenv(envCrash))
	point := 0
	if err := limitFiles(os.Getenv(envFirst)); err != nil {
		fmt.Println("error", err)
		return 1
	}
	s, err := Open(dir, Options{hook: func(string) error {
		if point++; point == crash {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
		return nil
	}})
	if err != nil {
		fmt.Println("error", err)
		return 1
	}
	if size, err := strconv.ParseUint(os.Getenv(envFull), 10, 64); err == nil {
		if err := limitFiles(os.Getenv(envFull)); err != nil {
			fmt.Println("error", err)
			return 1
		}
		_, err := s.PutBlob(context.Background(), "", bytes.NewReader(make([]byte, size+1)))
		fmt.Println("full", errors.Is(err, adapters.ErrStoreUnavailable), err)
	}
	if err := storetest.Script(s, func(step int) { fmt.Println("step", step) }); err != nil {
		fmt.Println("error", err)
		return 1
	}
	fmt.Println("points", point)
	return 0
}

// limitFiles makes the system refuse what would make a file larger than so many bytes; "" refuses nothing.
func limitFiles(bytes string) error {
	if bytes == "" {
		return nil
	}
	size, err := strconv.ParseUint(bytes, 10, 64)
	if err != nil {
		return err
	}
	return unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: size, Max: size})
}

// run runs a child and returns the last step that it reported, and all lines.
func run(t *testing.T, dir string, env ...string) (step int, lines []string, err error) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(append(os.Environ(), envDir+"="+dir), env...)
	out, err := cmd.Output()
	for sc := bufio.NewScanner(bytes.NewReader(out)); sc.Scan(); {
		lines = append(lines, sc.Text())
		if n, ok := strings.CutPrefix(sc.Text(), "step "); ok {
			step, _ = strconv.Atoi(n)
		}
	}
	return step, lines, err
}

func TestKilledAtEveryWritePoint(t *testing.T) {
	dir := t.TempDir()
	step, lines, err := run(t, dir)
	if err != nil {
		t.Fatalf("without a crash: %v: %v", err, lines)
	}
	check := func(dir string, step int) {
		t.Helper()
		s, err := Open(dir, Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if left, _ := os.ReadDir(s.tmpDir()); len(left) > 0 {
			t.Errorf("after step %d: %d temporary files", step, len(left))
		}
		storetest.CheckScript(t, s, step)
	}
	check(dir, step)
	n, err := strconv.Atoi(strings.TrimPrefix(lines[len(lines)-1], "points "))
	if err != nil || n < 40 {
		t.Fatalf("%d write points, %v", n, err)
	}
	for point := 1; point <= n; point++ {
		dir := filepath.Join(t.TempDir(), "store")
		step, lines, err := run(t, dir, envCrash+"="+strconv.Itoa(point))
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			t.Fatalf("write point %d: the child was not killed: %v, %v", point, err, lines)
		}
		check(dir, step)
		if t.Failed() {
			t.Fatalf("killed at write point %d of %d", point, n)
		}
	}
	t.Logf("killed at each of %d write points", n)
}

// A write that the system refuses, as on a full disk, leaves nothing behind, and the store goes on.
func TestWriteRefused(t *testing.T) {
	dir := t.TempDir()
	step, lines, err := run(t, dir, envFull+"="+strconv.Itoa(1<<20))
	if err != nil || len(lines) == 0 || !strings.HasPrefix(lines[0], "full true") {
		t.Fatalf("%v: %v", err, lines)
	}
	s, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	storetest.CheckScript(t, s, step)
}

// A first start on a full disk fails, and the next one, when there is room, makes the store.
func TestFirstStartRefused(t *testing.T) {
	for _, size := range []int{0, 1, 4096, 8192, 12288} {
		dir := t.TempDir()
		_, lines, err := run(t, dir, envFirst+"="+strconv.Itoa(size))
		if err == nil || !strings.Contains(strings.Join(lines, ""), adapters.ErrStoreUnavailable.Error()) {
			t.Errorf("%d bytes: %v: %v", size, err, lines)
		}
		if step, lines, err := run(t, dir); err != nil || step == 0 {
			t.Errorf("%d bytes, and again: %v: %v", size, err, lines)
		}
	}
}

// A database of which the end is missing is refused with an error.
func TestCutShort(t *testing.T) {
	dir := t.TempDir()
	if _, lines, err := run(t, dir); err != nil {
		t.Fatalf("%v: %v", err, lines)
	}
	path := filepath.Join(dir, "store.db")
	s, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	used := 0
	if err := s.db.View(func(tx *bbolt.Tx) error { used = int(tx.Size()); return nil }); err != nil {
		t.Fatal(err)
	}
	_ = s.Close()
	whole, err := os.ReadFile(path)
	if err != nil || used > len(whole) {
		t.Fatalf("%d bytes of %d are used, %v", used, len(whole), err)
	}
	for size := used - 1; size > 0; size -= 1000 {
		if err := os.WriteFile(path, whole[:size], 0o600); err != nil {
			t.Fatal(err)
		}
		if s, err := Open(dir, Options{}); !errors.Is(err, adapters.ErrCorrupt) { // or a fault, of this process
			t.Errorf("%d of %d bytes: %v", size, used, err)
			if err == nil {
				_ = s.Close()
			}
		}
	}
}

// An error at any write point is ErrStoreUnavailable, and the same call succeeds when it is made again.
func TestErrorAtEveryWritePoint(t *testing.T) {
	full := errors.New("no space left on device")
	for at := 1; ; at++ {
		point, hit := 0, ""
		s, err := Open(t.TempDir(), Options{hook: func(p string) error {
			if point++; point == at && p != "after commit" {
				hit = p
				return full
			}
			return nil
		}})
		if err != nil {
			t.Fatal(err)
		}
		step := 0
		err = storetest.Script(s, func(n int) { step = n })
		if hit != "" {
			if !errors.Is(err, adapters.ErrStoreUnavailable) || !errors.Is(err, full) {
				t.Errorf("%s (write point %d): %v", hit, at, err)
			}
			if left, _ := os.ReadDir(s.tmpDir()); len(left) > 0 {
				t.Errorf("%s (write point %d): %d temporary files", hit, at, len(left))
			}
			storetest.CheckScript(t, s, step)
		} else if err != nil {
			t.Errorf("write point %d: %v", at, err)
		}
		_ = s.Close()
		if point < at {
			break
		}
	}
}

func TestLocked(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, Options{}); !errors.Is(err, adapters.ErrStoreLocked) || !strings.Contains(err.Error(), dir) {
		t.Errorf("a second store: %v", err)
	}
	if _, lines, err := run(t, dir); err == nil || !strings.Contains(strings.Join(lines, ""), adapters.ErrStoreLocked.Error()) {
		t.Errorf("a second process: %v, %v", err, lines)
	}
	_ = s.Close()
	again, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	_ = again.Close()
}

func TestDamaged(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "store.db"), bytes.Repeat([]byte("garbage "), 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, Options{}); !errors.Is(err, adapters.ErrCorrupt) {
		t.Errorf("a file of garbage: %v", err)
	}
	s, err := Open(t.TempDir(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ctx := context.Background()
	b, err := s.PutBlob(ctx, "", strings.NewReader("content"))
	if err != nil {
		t.Fatal(err)
	}
	for _, damaged := range []string{"cont", "cXntent"} {
		if err := os.WriteFile(s.blobPath(b.SHA256), []byte(damaged), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := s.OpenBlob(ctx, "", b.SHA256); len(damaged) < 7 && !errors.Is(err, adapters.ErrCorrupt) {
			t.Errorf("a truncated blob: %v", err)
		}
		if _, err := s.PutBlob(ctx, "", strings.NewReader("content")); err != nil { // heals it
			t.Fatal(err)
		}
		r, err := s.OpenBlob(ctx, "", b.SHA256)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(io.NewSectionReader(r, 0, r.Size())); err != nil || string(got) != "content" {
			t.Errorf("put again over %q: %q, %v", damaged, got, err)
		}
		_ = r.Close()
	}
}

// A name's record that is damaged does not make its numbers begin anew.
func TestDamagedName(t *testing.T) {
	s, err := Open(t.TempDir(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ctx := context.Background()
	b, err := s.PutBlob(ctx, "", strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	v := adapters.Version{Name: "a", SHA256: b.SHA256, Rank: 1}
	if _, err := s.Publish(ctx, "", v, adapters.PublishOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := s.db.Update(func(tx *bbolt.Tx) error { return tx.Bucket(bucketNames).Put(key("default", "a"), []byte("{")) }); err != nil {
		t.Fatal(err)
	}
	v.Rank = 2
	if got, err := s.Publish(ctx, "", v, adapters.PublishOptions{}); !errors.Is(err, adapters.ErrCorrupt) {
		t.Errorf("published as %d, %v", got.Number, err)
	}
	if got, err := s.Get(ctx, "", "a", 1); err != nil || got.Rank != 1 {
		t.Errorf("version 1 is %+v, %v", got, err)
	}
}

func TestFeedIsCut(t *testing.T) {
	s, err := Open(t.TempDir(), Options{FeedLength: 3})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ctx := context.Background()
	start, err := s.Cursor(ctx)
	if err != nil {
		t.Fatal(err)
	}
	b, err := s.PutBlob(ctx, "", strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		if _, err := s.Publish(ctx, "", adapters.Version{Name: "a", SHA256: b.SHA256}, adapters.PublishOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Watch(ctx, start); !errors.Is(err, adapters.ErrCursorLost) {
		t.Errorf("a cursor before the cut: %v", err)
	}
	if c, err := s.Watch(ctx, ""); err != nil || len(c) != 3 || c[0].Number != 3 {
		t.Errorf("the feed's beginning: %+v, %v", c, err)
	}
}
