package infer

import (
	"context"
	"testing"

	"bhive/adapters"
	"bhive/kernels"
	"bhive/kernels/devicetest"
)

// TestBench runs the benchmark at its smallest; times are not looked at.
func TestBench(t *testing.T) {
	m := tinyModel(t, "llama", kernels.BF16, kernels.FormatBF16)
	free := m.Backend.Info().MemoryFree
	r, err := Bench(context.Background(), m, BenchConfig{Batches: []int{1, 3}, Steps: 4, Context: 20, Prefill: 30, Prefills: 2})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Decode) != 4 || r.Decode[3].Batch != 3 || r.Decode[3].Adapters != 3 || r.Decode[3].Bytes <= r.Decode[2].Bytes || r.Prefill.Tokens != 30 {
		t.Errorf("%+v", r)
	}
	if now := m.Backend.Info().MemoryFree; now != free && devicetest.OnCPU() { // a GPU keeps a stream's scratch
		t.Errorf("%d bytes free before, %d after", free, now)
	}
}

// BenchmarkSmolLM2 measures SmolLM2 in its default form with 64 rows of A.
func BenchmarkSmolLM2(b *testing.B) {
	g := smolLM2Golden(b)
	basis, err := adapters.NewBasis(context.Background(), adapters.BasisConfig{Geometry: GeometryOf(g.cp.Config()), BaseHash: g.hash})
	if err != nil {
		b.Fatal(err)
	}
	for _, format := range []kernels.Format{kernels.FormatBF16, kernels.FormatInt8} {
		b.Run(string(format), func(b *testing.B) {
			m, err := Load(context.Background(), openDevice(b, kernels.BF16), g.cp, basis, LoadConfig{Format: format, Positions: 1024, BaseHash: g.hash})
			if err != nil {
				b.Fatal(err)
			}
			defer m.Close()
			for b.Loop() {
				r, err := Bench(context.Background(), m, BenchConfig{})
				if err != nil {
					b.Fatal(err)
				}
				for _, d := range r.Decode {
					b.Logf("decode %d, %d adapters: %v, %.1f tok/s, %.1f GB/s", d.Batch, d.Adapters, d.Step, d.TokensPerSecond, d.BytesPerSecond/1e9)
				}
				b.Logf("prefill %d: %v, %.0f tok/s", r.Prefill.Tokens, r.Prefill.Time, r.Prefill.TokensPerSecond)
			}
		})
	}
}
