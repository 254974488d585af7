package infer

import (
	"errors"
	"testing"

	"bhive/adapters"
	"bhive/infer/checkpoint"
	"bhive/kernels"
	"bhive/kernels/kerneltest"

	"github.com/google/go-cmp/cmp"
)

// TestCloseFrees: whatever a model, an engine, a scorer or a bench allocates is given back, after its life and where an allocation fails.
func TestCloseFrees(t *testing.T) {
	be := kerneltest.NewLedger(openDevice(t, kernels.F32))
	cp, err := checkpoint.Open("demo")
	if err != nil {
		t.Fatal(err)
	}
	defer cp.Close()
	basis, err := adapters.NewBasis(t.Context(), adapters.BasisConfig{R: 8, Geometry: GeometryOf(cp.Config()), BaseHash: BaseHash(cp)})
	if err != nil {
		t.Fatal(err)
	}
	load := func() (*Model, error) {
		return Load(t.Context(), be, cp, basis, LoadConfig{Format: kernels.FormatF32, BaseHash: basis.BaseHash})
	}
	var m *Model
	if m, err = load(); err != nil {
		t.Fatal(err)
	}
	loaded := be.Live()
	tok := newRigTokenizer(t)
	config := Config{MaxSeqs: 4, MaxTokens: 16, KVBlocks: 32, Graphs: true, Overlap: true}
	lives := map[string]func() error{
		"scorer": func() error {
			s, err := NewScorer(m, ScorerConfig{})
			if err != nil {
				return err
			}
			defer s.Close()
			if err := s.SetAdapter(1, benchWeights(m.Geometry, 4, 1)); err != nil {
				return err
			}
			defer s.Close()
			_, err = s.NLL(t.Context(), []Sequence{{Tokens: []int32{1, 2, 3}, Adapter: 1, Labels: []int32{2, 3, -1}}})
			return err
		},
		"engine": func() error {
			e, err := New(config, m, nil, nil, tok)
			if err != nil {
				return err
			}
			defer e.Close()
			defer e.Close()
			return e.Open()
		},
		"engine with adapters": func() error {
			stream := be.NewStream()
			defer be.FreeStream(stream)
			d, err := NewDevice(be, stream, 4)
			if err != nil {
				return err
			}
			defer d.Close()
			defer d.Close()
			b, err := d.Alloc(1024)
			if err != nil {
				return err
			}
			d.SetSlot(0, nil, 0)
			d.Free(b)
			e, err := New(config, m, nil, d, tok)
			if err != nil {
				return err
			}
			defer e.Close()
			return e.Open()
		},
		"bench": func() error {
			_, err := Bench(t.Context(), m, BenchConfig{Batches: []int{1}, Steps: 1, Context: 8, Prefill: 8, Prefills: 1})
			return err
		},
		"engine bench": func() error {
			reserving := *m
			reserving.Backend = apart{be}
			b, err := OpenEngineBench(&reserving, tok, EngineBenchConfig{Rank: 4, Slots: 4, DeviceBytes: 1 << 20, HostBytes: 1 << 20, MaxTokens: 16})
			if err != nil {
				return err
			}
			b.Close()
			return nil
		},
		"device bench": func() error {
			b, err := NewDeviceBench(m, 64, 2, 4)
			if err != nil {
				return err
			}
			b.Close()
			return nil
		},
	}
	for name, life := range lives {
		t.Run(name, func(t *testing.T) {
			for n := 0; ; n++ {
				be.FailAt(n)
				err := life()
				be.FailAt(0)
				if d := cmp.Diff(loaded, be.Live()); d != "" {
					t.Fatalf("allocation %d fails (0: none): %v; what is left (-before +after):\n%s", n, err, d)
				}
				if n == 0 && err != nil || n > 0 && err != nil && !errors.Is(err, kernels.ErrNoMemory) {
					t.Fatalf("allocation %d fails: %v", n, err)
				}
				if n > 0 && err == nil {
					return // there are no more to fail
				}
			}
		})
	}
	m.Close()
	m.Close()
	if left := be.Live(); len(left) > 0 {
		t.Errorf("a closed model leaves %v", left)
	}
	for n := 1; ; n += 7 {
		be.FailAt(n)
		m, err := load()
		be.FailAt(0)
		if err == nil {
			m.Close()
			break
		}
		if left := be.Live(); len(left) > 0 || !errors.Is(err, kernels.ErrNoMemory) {
			t.Fatalf("allocation %d fails: %v; left are %v", n, err, left)
		}
	}
}
