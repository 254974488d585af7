package infer

import (
	"testing"

	"bhive/adapters"
	"bhive/kernels"
)

// TestFootprint: what is predicted of a shape is what a model of it has.
func TestFootprint(t *testing.T) {
	be := openDevice(t, kernels.BF16)
	for _, rows := range []int{0, 16} {
		cc, err := RandomConfig("tiny")
		if err != nil {
			t.Fatal(err)
		}
		hash := RandomHash("tiny", 1)
		var basis *adapters.Basis
		if rows > 0 {
			if basis, err = adapters.NewBasis(t.Context(), adapters.BasisConfig{Method: adapters.Kaiming, R: rows, Geometry: GeometryOf(cc), BaseHash: hash}); err != nil {
				t.Fatal(err)
			}
		}
		m, err := LoadRandom(t.Context(), be, "tiny", 1, basis, LoadConfig{BaseHash: hash})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(m.Close)
		f := Footprint{Config: cc, Rows: rows, WeightBits: 16, WorkBytes: 2}
		var weights int64
		for _, w := range m.weights {
			weights += w.Bytes()
		}
		if f.Bytes() != weights {
			t.Errorf("R = %d: %d bytes of weights, predicted %d", rows, weights, f.Bytes())
		}
		if got, want := f.StepBytes(7, 3, 8, 100), m.stepBytes(7, 3, 8, 100); got != want {
			t.Errorf("R = %d: a step of %d bytes, predicted %d", rows, want, got)
		}
		if f.KVTokenBytes() != m.KVTokenBytes() {
			t.Errorf("a token of %d bytes, predicted %d", m.KVTokenBytes(), f.KVTokenBytes())
		}
	}
}

// TestLlama8B holds the arithmetic against figures that are known.
func TestLlama8B(t *testing.T) {
	cc, err := RandomConfig("llama-3-8b")
	if err != nil {
		t.Fatal(err)
	}
	f := Footprint{Config: cc, WeightBits: 16, WorkBytes: 2}
	for what, x := range map[string][2]int64{
		"weights":          {f.Bytes(), 2 * (8030261248 - 65*4096)}, // the published parameters, without norms
		"an adapter of 16": {f.AdapterBytes(16), 44040192},
		"a token of K, V":  {f.KVTokenBytes(), 128 << 10},
	} {
		if x[0] != x[1] {
			t.Errorf("%s: %d bytes, want %d", what, x[0], x[1])
		}
	}
}

// TestWindowIsRead: of a sliding window's layers a step reads the window alone.
func TestWindowIsRead(t *testing.T) {
	cc, err := RandomConfig("llama-3-8b")
	if err != nil {
		t.Fatal(err)
	}
	f := Footprint{Config: cc, WeightBits: 16, WorkBytes: 2}
	cc.SlidingWindow, cc.SlidingLayers = 4096, make([]bool, cc.Layers)
	for l := range cc.Layers / 4 {
		cc.SlidingLayers[l] = true
	}
	some := f
	some.Config = cc
	cc.SlidingLayers = nil
	all := f
	all.Config = cc
	for _, context := range []int{1, 4096, 10_000} {
		whole, within := 3*int64(context)*f.KVTokenBytes(), 3*int64(min(context, 4096))*f.KVTokenBytes()
		weights := f.StepBytes(3, 0, 1, context) - whole
		if got := all.StepBytes(3, 0, 1, context) - weights; got != within {
			t.Errorf("a context of %d, all layers of 4096: %d bytes, want %d", context, got, within)
		}
		if got := some.StepBytes(3, 0, 1, context) - weights; got != (3*whole+within)/4 {
			t.Errorf("a context of %d, a quarter of the layers of 4096: %d bytes, want %d", context, got, (3*whole+within)/4)
		}
	}
}

func TestFitRandom(t *testing.T) {
	for _, x := range []struct {
		name  string
		bytes int64
		want  string
	}{
		{"llama-3-8b", 20e9, "llama-3-8b"},
		{"llama-3-8b", 10e9, "llama-3-8b:17"},
		{"llama-3-8b:31", 10e9, "llama-3-8b:31"},
		{"llama-3-70b", 60e9, "llama-3-70b:32"},
		{"tiny", 1, "tiny:1"},
	} {
		got, err := FitRandom(x.name, 64, x.bytes)
		if err != nil || got != x.want {
			t.Errorf("%s in %d bytes: %s, want %s; %v", x.name, x.bytes, got, x.want, err)
			continue
		}
		if _, err := RandomConfig(got); err != nil {
			t.Error(err)
		}
	}
	for _, bad := range []string{"", "llama", "tiny:0", "tiny:3", "tiny:x", "tiny:"} {
		if _, err := FitRandom(bad, 64, 1); err == nil {
			t.Errorf("%q is a random model", bad)
		}
	}
}
