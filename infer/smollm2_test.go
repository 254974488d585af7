package infer

import (
	"os"
	"testing"

	"bhive/infer/checkpoint"
	"bhive/kernels"
)

// smolLM2Golden skips unless BHIVE_SMOLLM2 is set and both the references and the model are there.
func smolLM2Golden(t testing.TB) goldenModel {
	t.Helper()
	if os.Getenv("BHIVE_SMOLLM2") == "" {
		t.Skip("set BHIVE_SMOLLM2=1 (make test-smollm2 does)")
	}
	const dir = "../../shared/golden/smollm2"
	if _, err := os.Stat(dir); err != nil {
		t.Skipf("no references: %v", err)
	}
	path, err := checkpoint.Resolve("smollm2", []string{"../models"})
	if err != nil {
		t.Skip(err)
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
