package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestAdapterFiles: adapters come in from PEFT's files and go out to them, and a dry run leads to a basis that holds them.
func TestAdapterFiles(t *testing.T) {
	p := serve(t, t.TempDir())
	dir := t.TempDir()
	const golden = "adapters/testdata"

	basis := filepath.Join(dir, "basis")
	out := p.must("adapters", "import", golden, "--dry-run", "--basis-out", basis)
	for _, says := range []string{"adapter_one", "adapter_two", "adapter_plain", "q_proj", "down_proj", "3 adapters", "saved"} {
		if !strings.Contains(out, says) {
			t.Errorf("a dry run does not tell of %s:\n%s", says, out)
		}
	}
	if out := p.must("adapters", "ls"); strings.Contains(out, "dry-run") {
		t.Errorf("a dry run published:\n%s", out)
	}
	out = p.must("adapters", "import", filepath.Join(golden, "adapter_plain"), "--name", "plain")
	if !strings.Contains(out, "plain@1 is live") || !strings.Contains(out, "warning:") {
		t.Errorf("a projected import printed:\n%s", out)
	}
	for _, c := range []struct {
		want string
		args []string
	}{
		{"no such file", []string{dir, "--name", "x"}},
		{"--name", []string{golden}},
		{"holds no PEFT adapter", []string{dir + "/..", "--dry-run"}},
		{"invalid name", []string{filepath.Join(golden, "adapter_plain"), "--name", "X"}},
	} {
		if out, err := p.run(append([]string{"adapters", "import"}, c.args...)...); err == nil || !strings.Contains(out, c.want) {
			t.Errorf("import %v: want an error with %q, got %v:\n%s", c.args, c.want, err, out)
		}
	}
	p.stop()

	p = serve(t, t.TempDir(), "--basis", "import", "--basis-from", basis)
	for _, name := range []string{"one", "two"} { // of one A together, so 64 rows hold them but for rounding
		out := p.must("adapters", "import", filepath.Join(golden, "adapter_"+name), "--name", name)
		if !strings.Contains(out, "100.00 % kept") && !strings.Contains(out, "99.9") {
			t.Errorf("on the best basis:\n%s", out)
		}
	}
	tar := filepath.Join(dir, "one.tar")
	p.must("adapters", "export", "one", tar)
	raw, err := os.ReadFile(tar)
	if err != nil || !bytes.Contains(raw, []byte("lora_A.weight")) {
		t.Errorf("export wrote %d bytes, %v", len(raw), err)
	}
	if out, err := p.run("adapters", "export", "nobody", filepath.Join(dir, "no.tar")); err == nil || !strings.Contains(out, "nobody") {
		t.Errorf("export of an unknown adapter: %v: %s", err, out)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "no.tar*")); len(left) > 0 {
		t.Errorf("a failed export left %v", left)
	}
	if out, err := p.run("adapters", "export", "one", dir); err == nil || !strings.Contains(out, "is a directory") {
		t.Errorf("export to a directory: %v: %s", err, out)
	}
	// A version 0 is none, and not all of them.
	for _, args := range [][]string{{"rm", "one", "0"}, {"rm", "one", "--", "-1"}, {"rollback", "one", "0"}, {"export", "one", tar, "0"}} {
		if out, err := p.run(append([]string{"adapters"}, args...)...); err == nil || !strings.Contains(out, "a version must be") {
			t.Errorf("%v: %v: %s", args, err, out)
		}
	}
	p.must("adapters", "show", "one")
	if left, _ := filepath.Glob(dir + "*.part"); len(left) > 0 {
		t.Errorf("an export to a directory left %v", left)
	}
	p.stop()
}
