//go:build cuda

package cuda

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"bhive/kernels"
)

// withDriver runs the test again, in a process whose driver is testdata/driver.c, and reports whether this is that process. environ is for the driver.
func withDriver(t *testing.T, environ ...string) bool {
	t.Helper()
	const mark = "BHIVE_TEST_DRIVER"
	if os.Getenv(mark) != "" {
		return true
	}
	cc, err := exec.LookPath("cc")
	if err != nil {
		t.Skip("no C compiler for the test's driver: ", err)
	}
	source := filepath.Join("testdata", "driver.c")
	if _, err := os.Stat(source); err != nil {
		t.Skip(err) // a test binary that was carried elsewhere
	}
	dir := t.TempDir()
	if out, err := exec.Command(cc, "-shared", "-fPIC", "-o", filepath.Join(dir, "libcuda.so.1"), source).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	again := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	again.Env = append(append(os.Environ(), mark+"=1", "LD_LIBRARY_PATH="+dir), environ...)
	out, err := again.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Fatalf("with the test's driver: %v\n%s", err, out)
	}
	return false
}

func opened(t *testing.T, c Config) *Backend {
	t.Helper()
	b, err := open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

// TestOpenGivesBack: an Open that fails leaves nothing of the device taken.
func TestOpenGivesBack(t *testing.T) {
	if !withDriver(t, "BAD_MODULES=3") {
		return
	}
	for range 3 { // the driver lets its context be held twice
		if _, err := open(Config{}); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "loading the kernels") {
			t.Fatalf("a bad module: %v", err)
		}
	}
	opened(t, Config{})
	opened(t, Config{})
}

// TestOneDevice: what runs on a device goes on there when another one is asked for.
func TestOneDevice(t *testing.T) {
	if !withDriver(t) {
		return
	}
	first := opened(t, Config{})
	if _, err := open(Config{Device: 1}); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "one device") {
		t.Errorf("a second device: %v", err)
	}
	if _, err := open(Config{Device: 2}); !errors.Is(err, ErrUnavailable) {
		t.Errorf("a device that is not there: %v", err)
	}
	opened(t, Config{})
	if _, err := first.Alloc(kernels.F32, 1, 1); err != nil {
		t.Error(err)
	}
	if err := first.Close(); err != nil {
		t.Error(err)
	}
}

// TestCaptureWithoutMemory: scratch memory that a captured step has no room for is an error of its capture, and the stream captures again.
func TestCaptureWithoutMemory(t *testing.T) {
	if !withDriver(t, "ROOM=1000000") {
		return
	}
	b := opened(t, Config{})
	s := b.NewStream().(*stream)
	defer b.FreeStream(s)
	if _, err := b.Capture(s, func() { s.grow(&s.logits, 2000000) }); !errors.Is(err, kernels.ErrNoMemory) {
		t.Errorf("%v, want %v", err, kernels.ErrNoMemory)
	}
	func() {
		defer func() {
			if recover() != "a bug" {
				t.Error("another panic of a capture is an error")
			}
		}()
		b.Capture(s, func() { panic("a bug") })
	}()
	g, err := b.Capture(s, func() { s.grow(&s.logits, 1000) })
	if err != nil {
		t.Fatal(err)
	}
	g.Close()
	if err := s.Sync(); err != nil {
		t.Error(err)
	}
}

// TestCopyManyRows: a copy that goes row by row has any number of them; a grid has 65,535 in that direction.
func TestCopyManyRows(t *testing.T) {
	if !withDriver(t) {
		return
	}
	b := opened(t, Config{Working: kernels.BF16, NoLt: true})
	s := b.NewStream()
	defer b.FreeStream(s)
	const rows = 200_000
	for _, d := range []kernels.DType{kernels.BF16, kernels.F32} {
		src, err := b.Alloc(d, rows, 7)
		if err != nil {
			t.Fatal(err)
		}
		dst, err := b.Alloc(kernels.BF16, rows, 3)
		if err != nil {
			t.Fatal(err)
		}
		b.Copy(s, dst, src.ColRange(4, 7)) // as z from [y, z]
		if err := s.Sync(); err != nil {
			t.Errorf("from %s: %v", d, err)
		}
		b.Free(src)
		b.Free(dst)
	}
}

// TestHeadSize: a cache for heads that attention has no kernel for is refused, before a step meets it.
func TestHeadSize(t *testing.T) {
	if !withDriver(t) {
		return
	}
	b := opened(t, Config{Working: kernels.BF16, NoLt: true})
	spec := kernels.KVSpec{Layers: 1, Blocks: 2, BlockTokens: 16, KVHeads: 1, HeadDim: 512}
	if _, err := b.NewKVCache(spec); err == nil || errors.Is(err, kernels.ErrNoMemory) || !strings.Contains(err.Error(), "heads of 512") {
		t.Errorf("heads of 512: %v", err)
	}
	spec.HeadDim = 256
	c, err := b.NewKVCache(spec)
	if err != nil {
		t.Fatal(err)
	}
	b.FreeKVCache(c)
}

// TestDriverThatFails: Probe says what the driver answers where it does not start.
func TestDriverThatFails(t *testing.T) {
	if !withDriver(t, "BAD_INIT=803") {
		return
	}
	if _, err := Probe(); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "an error of the test's driver (cuInit: 803)") {
		t.Error(err)
	}
}
