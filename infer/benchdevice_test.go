package infer

import (
	"testing"

	"bhive/adapters"
	"bhive/kernels"
)

// TestDeviceBench: the benchmark's steps run on any device, and a random model has finite logits.
func TestDeviceBench(t *testing.T) {
	be := openDevice(t, kernels.BF16)
	cc, err := RandomConfig("tiny")
	if err != nil {
		t.Fatal(err)
	}
	hash := RandomHash("tiny", 1)
	basis, err := adapters.NewBasis(t.Context(), adapters.BasisConfig{Method: adapters.Kaiming, R: 16, Geometry: GeometryOf(cc), BaseHash: hash})
	if err != nil {
		t.Fatal(err)
	}
	m, err := LoadRandom(t.Context(), be, "tiny", 1, basis, LoadConfig{BaseHash: hash})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	b, err := NewDeviceBench(m, 600, 4, 8)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	for _, distinct := range []int{0, 1, 4} {
		if d, err := b.Prefill(t.Context(), 4, distinct, 100, 200, 1); err != nil || d <= 0 {
			t.Fatal(d, err)
		}
		if d, err := b.Decode(t.Context(), 4, distinct, 100, 8); err != nil || d <= 0 {
			t.Fatal(d, err)
		}
	}
	if _, err := b.Decode(t.Context(), 10, 0, 100, 8); err == nil {
		t.Error("sequences that do not fit run")
	}
}
