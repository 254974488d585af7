package infer

import (
	"errors"
	"testing"

	"bhive/kernels"
	"bhive/kernels/cpu"
)

func TestKVFromFreeMemory(t *testing.T) {
	const gib = 1 << 30
	c := Config{MaxSeqs: 64, MaxContext: 8192, BlockTokens: 16, MemoryUtilization: 0.9}
	const token = 128 << 10 // Llama-3-8B in bfloat16
	for _, x := range []struct {
		name        string
		total, free int64
		reserve     int64
		util        float64
		want        int64 // bytes; 0: ErrNoMemory
	}{
		{"what is left", 80 * gib, 60 * gib, 0, 0.9, 52 * gib},
		{"without the adapters", 80 * gib, 60 * gib, 20 * gib, 0.9, 32 * gib},
		{"all", 80 * gib, 60 * gib, 0, 1, 60 * gib},
		{"no more than is of use", 800 * gib, 700 * gib, 0, 0.9, 128 * gib},
		{"whole blocks", 80 * gib, 8*gib + 3<<20, 0, 0.9, 2 << 20},
		{"nothing", 80 * gib, 8 * gib, 0, 0.9, 0},
		{"less than nothing", 80 * gib, 10 * gib, 20 * gib, 0.9, 0},
	} {
		c := c
		c.Reserve, c.MemoryUtilization = x.reserve, x.util
		got, err := c.withFreeMemory(kernels.Info{MemoryTotal: x.total, MemoryFree: x.free}, token)
		switch {
		case x.want == 0:
			if !errors.Is(err, kernels.ErrNoMemory) {
				t.Errorf("%s: %v", x.name, err)
			}
		case err != nil:
			t.Errorf("%s: %v", x.name, err)
		case got.KVBytes > x.want || got.KVBytes < x.want-16*token || got.KVBytes != int64(got.KVBlocks)*16*token:
			t.Errorf("%s: %d bytes in %d blocks, want %d", x.name, got.KVBytes, got.KVBlocks, x.want)
		}
	}
}

// TestEngineTakesFreeMemory opens an engine on a device of a known size, and one on a device that is too small.
func TestEngineTakesFreeMemory(t *testing.T) {
	cp := openCheckpoint(t, "testdata/tiny/llama")
	for _, mib := range []int64{6, 24} {
		be, err := cpu.Open(cpu.Config{MemoryBytes: mib << 20})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { be.Close() })
		m, err := Load(t.Context(), be, cp, nil, LoadConfig{})
		if err != nil {
			t.Fatal(err)
		}
		before := be.Info().MemoryFree
		e, err := New(Config{MaxSeqs: 256, MaxTokens: 256, MemoryUtilization: 0.75, Reserve: 2 << 20}, m, nil, nil, newRigTokenizer(t))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := e.Submit(t.Context(), Request{Prompt: []int{1}, Params: greedily(1)}); !errors.Is(err, ErrClosed) {
			t.Errorf("Submit before Open: %v", err)
		}
		err = e.Open()
		info := be.Info()
		if mib == 6 {
			if !errors.Is(err, ErrNoMemory) || info.MemoryFree != before {
				t.Errorf("with too little memory: %v; %d bytes free of %d", err, info.MemoryFree, before)
			}
		} else if left := info.MemoryFree - 2<<20 - info.MemoryTotal/4; err != nil || left < 0 || left > 1<<20 {
			t.Errorf("%v; %d bytes more than reserved are left, KV cache %d", err, left, e.Config().KVBytes)
		}
		e.Close()
		m.Close()
	}
}
