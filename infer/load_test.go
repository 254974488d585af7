package infer

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	"bhive/adapters"
	"bhive/infer/checkpoint"
	"bhive/kernels"
	"bhive/kernels/cpu"
	"bhive/kernels/devicetest"
)

func TestBaseHash(t *testing.T) {
	sharded := openCheckpoint(t, "testdata/tiny/llama")
	fromFS, err := checkpoint.OpenFS(os.DirFS("testdata/tiny/llama"))
	if err != nil {
		t.Fatal(err)
	}
	defer fromFS.Close()
	if a, b := BaseHash(sharded), BaseHash(fromFS); a != b || len(a) != 64 {
		t.Errorf("one checkpoint has hashes %s and %s", a, b)
	}
	seen := map[string]string{}
	for _, name := range []string{"llama", "llama-bias", "llama3-rope", "mistral-window", "qwen2-yarn", "qwen3"} {
		h := BaseHash(openCheckpoint(t, "testdata/tiny/"+name))
		if other, ok := seen[h]; ok {
			t.Errorf("%s and %s have one hash", name, other)
		}
		seen[h] = name
	}
}

// TestLoadErrors: each failure names what is wrong and gives all memory back.
func TestLoadErrors(t *testing.T) {
	cp := openCheckpoint(t, "testdata/tiny/llama-bias")
	basis := func(g adapters.Geometry, hash string) *adapters.Basis {
		b, err := adapters.NewBasis(context.Background(), adapters.BasisConfig{R: 8, Geometry: g, BaseHash: hash})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	other := GeometryOf(cp.Config())
	other.Layers++
	cancelled, cancel := context.WithCancel(context.Background())
	cancel()
	for _, c := range []struct {
		name   string
		ctx    context.Context
		memory int64
		basis  *adapters.Basis
		want   error
	}{
		{"another base's basis", context.Background(), 0, basis(GeometryOf(cp.Config()), "other"), adapters.ErrBaseMismatch},
		{"a basis of another shape", context.Background(), 0, basis(other, BaseHash(cp)), adapters.ErrBaseMismatch},
		{"no memory", context.Background(), 300 << 10, nil, kernels.ErrNoMemory},
		{"cancelled", cancelled, 0, nil, context.Canceled},
	} {
		t.Run(c.name, func(t *testing.T) {
			be, err := cpu.Open(cpu.Config{MemoryBytes: max(c.memory, 0)})
			if err != nil {
				t.Fatal(err)
			}
			defer be.Close()
			free := be.Info().MemoryFree
			if _, err := Load(c.ctx, be, cp, c.basis, LoadConfig{}); !errors.Is(err, c.want) {
				t.Errorf("error %v, want %v", err, c.want)
			}
			if now := be.Info().MemoryFree; now != free {
				t.Errorf("%d of %d bytes free after the failure", now, free)
			}
		})
	}
}

// lying is a source with one tensor replaced.
type lying struct {
	checkpointSource
	name string
	with kernels.Matrix
}

func (s lying) Matrix(name string) (kernels.Matrix, error) {
	if name != s.name {
		return s.checkpointSource.Matrix(name)
	}
	if s.with == nil {
		return nil, checkpoint.ErrNoTensor
	}
	return s.with, nil
}

func TestLoadNamesTheTensor(t *testing.T) {
	cp := openCheckpoint(t, "testdata/tiny/qwen3")
	be := openDevice(t, kernels.F32)
	for _, name := range []string{"model.embed_tokens.weight", "model.norm.weight", "model.layers.2.self_attn.k_proj.weight", "model.layers.1.self_attn.q_norm.weight"} {
		for _, with := range []kernels.Matrix{nil, bf16Matrix{3, 5, make([]uint16, 15)}} {
			free := be.Info().MemoryFree
			_, err := build(context.Background(), be, cp.Config(), lying{checkpointSource{cp}, name, with}, nil, LoadConfig{Format: kernels.FormatF32})
			if !errors.Is(err, ErrCheckpoint) || with != nil && !strings.Contains(err.Error(), name) {
				t.Errorf("%s as %v: error %v", name, with, err)
			}
			if be.Info().MemoryFree != free && devicetest.OnCPU() { // a GPU keeps a stream's scratch
				t.Errorf("%s: memory is lost", name)
			}
		}
	}
}

func TestLoadProgress(t *testing.T) {
	cp := openCheckpoint(t, "testdata/tiny/llama-tied-linear")
	be := openDevice(t, kernels.F32)
	calls, last := 0, 0
	m, err := Load(context.Background(), be, cp, nil, LoadConfig{Positions: 100, Progress: func(done, total int) {
		calls++
		if done != calls || done > total {
			t.Errorf("%d of %d at call %d", done, total, calls)
		}
		last = total
	}})
	if err != nil {
		t.Fatal(err)
	}
	if calls != last || m.Positions != 100 || m.Rope.Rows != 100 || m.Head != m.Embed {
		t.Errorf("%d calls of %d, %d positions", calls, last, m.Positions)
	}
	m.Close()
	m.Close()
}
