package goldentest

import (
	"cmp"
	"os"
	"path/filepath"
	"testing"

	"bhive/infer/checkpoint"
)

// SmolLM2 is the folder of SmolLM2's references and its checkpoint; it skips unless both are there. They are looked for where BHIVE_SMOLLM2_GOLDEN
// (a folder) and BHIVE_SMOLLM2_MODEL (the GGUF or its folder) say; with BHIVE_SMOLLM2 alone, beside and in the repository, from a package's folder.
func SmolLM2(t testing.TB) (dir string, cp *checkpoint.Checkpoint) {
	t.Helper()
	dir, model := os.Getenv("BHIVE_SMOLLM2_GOLDEN"), os.Getenv("BHIVE_SMOLLM2_MODEL")
	if dir == "" && model == "" && os.Getenv("BHIVE_SMOLLM2") == "" {
		t.Skip("set BHIVE_SMOLLM2=1 (make test-smollm2 does)")
	}
	dir, model = cmp.Or(dir, "../../shared/golden/smollm2"), cmp.Or(model, "../models")
	if _, err := os.Stat(filepath.Join(dir, "base.logits.json")); err != nil {
		t.Skipf("no references: %v", err)
	}
	path := model
	if s, err := os.Stat(model); err != nil || s.IsDir() {
		if path, err = checkpoint.Resolve("smollm2", []string{model}); err != nil {
			t.Skip(err)
		}
	}
	cp, err := checkpoint.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cp.Close() })
	return dir, cp
}
