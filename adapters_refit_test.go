package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"bhive/adapters"
)

// TestRefitImport: fitted to its outputs on texts, a foreign LoRA is nearer to itself than projected, on other texts too.
func TestRefitImport(t *testing.T) {
	p := serve(t, t.TempDir())
	raw, err := os.ReadFile("examples/pirate.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.SplitAfter(string(raw), "\n")
	dir := t.TempDir()
	texts, check := filepath.Join(dir, "texts.jsonl"), filepath.Join(dir, "check.jsonl")
	for name, part := range map[string][]string{texts: lines[:30], check: lines[40:60]} {
		if err := os.WriteFile(name, []byte(strings.Join(part, "")), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	const plain = "adapters/testdata/adapter_plain"
	out := p.must("adapters", "import", plain, "--refit", texts, "--refit-check", check, "--name", "plain")
	distance := map[string]float64{}
	for line := range strings.Lines(out) {
		for _, how := range []string{"the base", "the LoRA", "projected", "refit"} {
			var loss, kl float64
			if rest, ok := strings.CutPrefix(line, how); ok {
				if n, _ := fmt.Sscan(rest, &loss, &kl); n == 2 {
					distance[how] = kl
				}
			}
		}
	}
	if len(distance) != 4 || !strings.Contains(out, "plain@1 is live: rank 64") || !strings.Contains(out, "down_proj") {
		t.Fatalf("a refit printed:\n%s", out)
	}
	if d := distance; d["the LoRA"] != 0 || d["refit"] > 0.75*d["projected"] || d["projected"] > d["the base"] {
		t.Errorf("the distances from the LoRA are %v:\n%s", d, out)
	}
	out = p.must("adapters", "import", plain, "--refit", texts, "--dry-run")
	if list := p.must("adapters", "ls"); strings.Contains(out, "is live") || strings.Count(list, "@") != 1 {
		t.Errorf("a dry run printed and left\n%s\n%s", out, list)
	}
	bad := filepath.Join(dir, "bad.jsonl")
	if err := os.WriteFile(bad, []byte("{\"text\": \"a\"}\n{\"nothing\": 1}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		want string
		args []string
	}{
		{"line 2", []string{plain, "--refit", bad, "--name", "x"}},
		{"no such file", []string{plain, "--refit", filepath.Join(dir, "none"), "--name", "x"}},
		{"--name", []string{plain, "--refit", texts}},
		{"no such file", []string{dir, "--refit", texts, "--name", "x"}},
	} {
		if out, err := p.run(append([]string{"adapters", "import"}, c.args...)...); err == nil || !strings.Contains(out, c.want) {
			t.Errorf("import %v: want an error with %q, got %v:\n%s", c.args, c.want, err, out)
		}
	}
	p.stop()

	b := &adapters.Basis{BaseHash: "the server's"}
	if _, err := given(b)(t.Context(), "another's", adapters.Geometry{}, nil); !errors.Is(err, adapters.ErrBaseMismatch) || !strings.Contains(err.Error(), "--model") {
		t.Errorf("another base: %v", err)
	}
}
