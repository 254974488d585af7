package adapters

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"testing"
	"testing/fstest"
	"time"

	"bhive/adapters/safetensors"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// exported is an export as a file system, through a tar.
func exported(t require, x *PEFTExport) fstest.MapFS {
	var b bytes.Buffer
	if err := x.WriteTar(&b, time.Unix(1700000000, 0)); err != nil {
		t.Fatal(err)
	}
	fsys, r := fstest.MapFS{}, tar.NewReader(&b)
	for {
		h, err := r.Next()
		if err == io.EOF {
			return fsys
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		fsys[h.Name] = &fstest.MapFile{Data: data}
	}
}

type require interface{ Fatal(...any) }

func TestExportGolden(t *testing.T) {
	basis, err := ImportBasis(readDemo(t, "adapter_one"), "demo")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"adapter_one", "adapter_two"} {
		w, _, err := basis.Adopt(readDemo(t, name))
		if err != nil {
			t.Fatal(err)
		}
		x, err := basis.Export(w, "demo")
		if err != nil {
			t.Fatal(err)
		}
		got := exported(t, x)[PEFTModelFile].Data
		want, err := os.ReadFile("testdata/" + name + "/" + PEFTModelFile)
		if err != nil {
			t.Fatal(err)
		}
		open := func(b []byte) *safetensors.File {
			f, err := safetensors.Open(bytes.NewReader(b), int64(len(b)))
			if err != nil {
				t.Fatal(err)
			}
			return f
		}
		g, o := open(got), open(want)
		if diff := cmp.Diff(o.Names(), g.Names()); diff != "" {
			t.Fatalf("%s: tensors (-PEFT's +ours):\n%s", name, diff)
		}
		for _, n := range o.Names() {
			a, err := o.Tensor(n)
			if err != nil {
				t.Fatal(err)
			}
			b, err := g.Tensor(n)
			if err != nil {
				t.Fatal(err)
			}
			if !cmp.Equal(a, b) {
				t.Errorf("%s: tensor %s differs: %s%v, want %s%v", name, n, b.DType, b.Shape, a.DType, a.Shape)
			}
		}
	}
}

func TestExportRoundTrip(t *testing.T) {
	basis, err := NewBasis(t.Context(), BasisConfig{Geometry: small, R: 6, BaseHash: "base"})
	if err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(t *rapid.T) {
		rank := rapid.IntRange(1, 6).Draw(t, "rank")
		w := NewWeights(small, rank, rapid.Float64Range(0.5, 64).Draw(t, "alpha"))
		switch rapid.IntRange(0, 2).Draw(t, "scaling") {
		case 1:
			w.Scaling = 1.25
		case 2:
			w.Scaling = -0.5
		}
		value := rapid.SampledFrom([]float32{0, 1, -0.5, 0.1, 3e-9})
		for layer := range small.Layers {
			for p := Q; p < NumProjs; p++ {
				if rapid.Bool().Draw(t, "trained") {
					m := w.Module(layer, p)
					for range 3 {
						m[rapid.IntRange(0, len(m)-1).Draw(t, "at")] = value.Draw(t, "value")
					}
				}
			}
		}
		x, err := basis.Export(w, "name")
		if err != nil {
			t.Fatal(err)
		}
		p, err := ReadPEFT(exported(t, x), small)
		if err != nil {
			t.Fatal(err)
		}
		got, report, err := basis.Adopt(p)
		if err != nil {
			t.Fatal(err)
		}
		if !report.Exact || got.Rank != rank || cmp.Diff(w.Data, got.Data) != "" {
			t.Errorf("exact %v, rank %d: %s", report.Exact, got.Rank, cmp.Diff(w.Data, got.Data))
		}
		if d := got.Scaling/w.Scaling - 1; d > 1e-12 || d < -1e-12 {
			t.Errorf("scaling %v, want %v", got.Scaling, w.Scaling)
		}
	})
}

// An export into a directory that breaks off leaves what the directory had.
func TestWriteDirBreaksOff(t *testing.T) {
	basis, err := NewBasis(t.Context(), BasisConfig{Geometry: small, R: 4, BaseHash: "base"})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, rank := range []int{2, 3} {
		x, err := basis.Export(ramp(rank, Q, Down), "")
		if err != nil {
			t.Fatal(err)
		}
		if rank == 3 {
			if err := x.WriteModel(io.Discard); err != nil { // its tensors can be read once
				t.Fatal(err)
			}
		}
		if err := x.WriteDir(dir); (err != nil) != (rank == 3) {
			t.Fatalf("rank %d: %v", rank, err)
		}
	}
	if p, err := ReadPEFT(os.DirFS(dir), small); err != nil || p.Rank != 2 {
		t.Errorf("the directory has %+v, %v", p, err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 2 {
		t.Errorf("it has %v, %v", entries, err)
	}
}

func TestExportRefuses(t *testing.T) {
	basis, err := NewBasis(t.Context(), BasisConfig{Geometry: small, R: 4, BaseHash: "base"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := basis.Export(NewWeights(small, 5, 1), ""); !errors.Is(err, ErrRank) {
		t.Errorf("a rank above R: %v", err)
	}
	if _, err := basis.Export(NewWeights(demo, 4, 1), ""); !errors.Is(err, ErrBaseMismatch) {
		t.Errorf("another geometry: %v", err)
	}
	if _, err := basis.Export(NewWeights(small, 4, 0), ""); !errors.Is(err, ErrUnsupported) {
		t.Errorf("scaling 0: %v", err)
	}
	x, err := basis.Export(NewWeights(small, 4, 1), "")
	if err != nil {
		t.Fatal(err)
	}
	p, err := ReadPEFT(exported(t, x), small)
	if err != nil {
		t.Fatal(err)
	}
	other, err := NewBasis(t.Context(), BasisConfig{Geometry: small, R: 4, BaseHash: "other"})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := other.Adopt(p); !errors.Is(err, ErrBaseMismatch) {
		t.Errorf("exported for another base: %v", err)
	}
}
