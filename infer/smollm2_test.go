package infer

import (
	"cmp"
	"os"
	"path/filepath"
	"testing"

	"bhive/infer/checkpoint"
	"bhive/kernels"
)

// smolLM2Golden skips unless both the references and the model are there. They are looked for where BHIVE_SMOLLM2_GOLDEN (a folder) and
// BHIVE_SMOLLM2_MODEL (the GGUF or its folder) say; with BHIVE_SMOLLM2 alone, beside and in the repository.
func smolLM2Golden(t testing.TB) goldenModel {
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
	cp := openCheckpoint(t, path)
	return goldenModel{dir, cp, BaseHash(cp)}
}

func TestSmolLM2Float32(t *testing.T) {
	smolLM2Golden(t).check(t, kernels.F32, kernels.FormatF32, float32Tolerance, true)
}

func TestSmolLM2BFloat16(t *testing.T) {
	g := smolLM2Golden(t)
	g.check(t, kernels.BF16, kernels.FormatBF16, bfloat16Tolerance(g.cp.Config().Layers), true)
}
