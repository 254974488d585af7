package infer

import (
	"testing"

	"bhive/infer/goldentest"
	"bhive/kernels"
)

func smolLM2Golden(t testing.TB) goldenModel {
	t.Helper()
	dir, cp := goldentest.SmolLM2(t)
	return goldenModel{dir, cp, BaseHash(cp)}
}

func TestSmolLM2Float32(t *testing.T) {
	smolLM2Golden(t).check(t, kernels.F32, kernels.FormatF32, float32Tolerance, true)
}

func TestSmolLM2BFloat16(t *testing.T) {
	g := smolLM2Golden(t)
	g.check(t, kernels.BF16, kernels.FormatBF16, bfloat16Tolerance(g.cp.Config().Layers), true)
}
