package adapters

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"bhive/adapters/safetensors"
)

func TestGeometryLayout(t *testing.T) {
	next := 0
	for l := range small.Layers {
		for p := Q; p < NumProjs; p++ {
			if got := small.OutOffset(l, p); got != next {
				t.Errorf("layer %d %v begins at %d, want %d", l, p, got, next)
			}
			next += small.Out(p)
			if q, ok := ParseProj(p.String()); !ok || q != p {
				t.Errorf("ParseProj(%v) = %v, %v", p, q, ok)
			}
		}
	}
	if small.OutTotal() != next {
		t.Errorf("OutTotal = %d, want %d", small.OutTotal(), next)
	}
	if w := NewWeights(small, 3, 6); len(w.Module(1, Up)) != 3*40 || w.Scaling != 2 {
		t.Errorf("module of %d elements, scaling %v", len(w.Module(1, Up)), w.Scaling)
	}
}

// ramp fills some modules of a B with values that bf16 holds.
func ramp(rank int, modules ...Proj) *Weights {
	w := NewWeights(small, rank, 2*float64(rank))
	for _, p := range modules {
		for i := range w.Module(1, p) {
			w.Module(1, p)[i] = float32(i%61-30) / 32
		}
	}
	return w
}

func encode(t testing.TB, w *Weights) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := EncodeBlob(&b, w, "rows", "base"); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestBlobRoundTrip(t *testing.T) {
	for name, w := range map[string]*Weights{"two modules": ramp(3, Q, Down), "zeros": ramp(2), "all": ramp(1, Q, K, V, O, Gate, Up, Down)} {
		raw := encode(t, w)
		got, meta, err := DecodeBlob(bytes.NewReader(raw), int64(len(raw)), small)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if d := cmp.Diff(w, got); d != "" {
			t.Errorf("%s: %s", name, d)
		}
		if want := (Meta{small, w.Rank, w.Alpha, w.Scaling, "rows", "base"}); meta != want {
			t.Errorf("%s: %+v", name, meta)
		}
	}
	w := ramp(1, Q)
	w.Data[0] = float32(math.Inf(1))
	if err := EncodeBlob(&bytes.Buffer{}, w, "", ""); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "layers.0.q_proj") {
		t.Errorf("an infinite weight: %v", err)
	}
}

func TestDecodeBlobRefuses(t *testing.T) {
	meta := func(edit ...string) map[string]string {
		m := map[string]string{"format": blobFormat, "rank": "2", "alpha": "4", "scaling": "2", "basis": "r", "base": "b"}
		small.describe(m)
		for i := 0; i < len(edit); i += 2 {
			m[edit[i]] = edit[i+1]
		}
		return m
	}
	q := func(name string, dtype safetensors.DType, rows, cols int) safetensors.Tensor {
		return safetensors.Tensor{Name: name, DType: dtype, Shape: []int{rows, cols}, Data: make([]byte, rows*cols*dtype.Size())}
	}
	good := q("layers.0.q_proj.lora_B", safetensors.F32, 32, 2)
	nan := q("layers.0.q_proj.lora_B", safetensors.F32, 32, 2)
	binary.LittleEndian.PutUint32(nan.Data[4:], math.Float32bits(float32(math.NaN())))
	for _, c := range []struct {
		name    string
		meta    map[string]string
		tensors []safetensors.Tensor
		kind    error
		says    string
	}{
		{"good", meta(), []safetensors.Tensor{good}, nil, ""},
		{"no tensors", meta(), nil, ErrCorrupt, "no tensors"},
		{"unknown tensor", meta(), []safetensors.Tensor{good, q("layers.0.x_proj.lora_B", safetensors.BF16, 1, 2)}, ErrCorrupt, "x_proj"},
		{"layer", meta(), []safetensors.Tensor{q("layers.2.q_proj.lora_B", safetensors.BF16, 32, 2)}, ErrCorrupt, "layers.2"},
		{"odd number", meta(), []safetensors.Tensor{q("layers.00.q_proj.lora_B", safetensors.BF16, 32, 2)}, ErrCorrupt, "layers.00"},
		{"shape", meta(), []safetensors.Tensor{q("layers.0.k_proj.lora_B", safetensors.BF16, 32, 2)}, ErrCorrupt, "k_proj"},
		{"rank lies", meta("rank", "4000"), []safetensors.Tensor{good}, ErrCorrupt, "q_proj"},
		{"rank 0", meta("rank", "0"), []safetensors.Tensor{good}, ErrRank, "rank"},
		{"rank huge", meta("rank", "5000"), []safetensors.Tensor{good}, ErrRank, "rank"},
		{"rank text", meta("rank", "x"), []safetensors.Tensor{good}, ErrCorrupt, "rank"},
		{"scaling", meta("scaling", "NaN"), []safetensors.Tensor{good}, ErrCorrupt, "scaling"},
		{"dtype", meta(), []safetensors.Tensor{q("layers.0.q_proj.lora_B", safetensors.F64, 32, 2)}, ErrCorrupt, "F64"},
		{"nan", meta(), []safetensors.Tensor{nan}, ErrCorrupt, "[0, 1]"},
		{"format", meta("format", "pt"), []safetensors.Tensor{good}, ErrCorrupt, "format"},
		{"geometry", meta("hidden", "25"), []safetensors.Tensor{good}, ErrBaseMismatch, "sizes"},
	} {
		var b bytes.Buffer
		if err := safetensors.Write(&b, c.tensors, c.meta); err != nil {
			t.Fatal(err)
		}
		_, _, err := DecodeBlob(bytes.NewReader(b.Bytes()), int64(b.Len()), small)
		if !errors.Is(err, c.kind) || (err != nil && !strings.Contains(err.Error(), c.says)) {
			t.Errorf("%s: want %v saying %q, got %v", c.name, c.kind, c.says, err)
		}
	}
}

func FuzzDecodeBlob(f *testing.F) {
	f.Add(encode(f, ramp(1, Q)))
	f.Add(encode(f, ramp(2, Down, Up)))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if w, _, err := DecodeBlob(bytes.NewReader(raw), int64(len(raw)), small); err == nil && len(w.Data) != w.Rank*small.OutTotal() {
			t.Error("wrong size")
		}
	})
}

func TestPackAndMix(t *testing.T) {
	a, b := ramp(2, Q, Up), ramp(3, Up)
	m := Mix([]*Weights{a, b}, []float64{0.5, -2})
	if m.Rank != 3 || m.Scaling != 1 {
		t.Fatalf("rank %d, scaling %v", m.Rank, m.Scaling)
	}
	for i := range small.Out(Up) {
		for j := range 3 {
			want := -2 * 2 * b.Module(1, Up)[i*3+j]
			if j < 2 {
				want += 0.5 * 2 * a.Module(1, Up)[i*2+j]
			}
			if got := m.Module(1, Up)[i*3+j]; got != want {
				t.Fatalf("[%d, %d] = %v, want %v", i, j, got, want)
			}
		}
	}
	f, h := a.Pack(F32), a.Pack(BF16)
	for i, v := range a.Data {
		if got := fromF32(f[4*i:]); got != 2*v {
			t.Fatalf("float32 element %d is %v, want %v", i, got, 2*v)
		}
		if got := fromBF16(binary.LittleEndian.Uint16(h[2*i:])); got != 2*v {
			t.Fatalf("bf16 element %d is %v, want %v", i, got, 2*v)
		}
	}
	// A lower rank is the same adapter with columns of zeros.
	wide := Mix([]*Weights{a, NewWeights(small, 4, 4)}, []float64{1, 1})
	for i := range small.OutTotal() {
		for j := range 4 {
			want := float32(0)
			if j < 2 {
				want = 2 * a.Data[i*2+j]
			}
			if got := wide.Data[i*4+j]; got != want {
				t.Fatalf("widened [%d, %d] = %v, want %v", i, j, got, want)
			}
		}
	}
}

func TestHalfTypes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := math.Float32frombits(rapid.Uint32().Draw(t, "bits"))
		h := fromBF16(toBF16(f))
		if f != f {
			if h == h {
				t.Fatalf("NaN became %v", h)
			}
			return
		}
		d := math.Abs(float64(h) - float64(f))
		for _, n := range []uint16{toBF16(f) - 1, toBF16(f) + 1} {
			if v := float64(fromBF16(n)); !math.IsNaN(v) && !math.IsInf(v, 0) && math.Abs(v-float64(f)) < d {
				t.Fatalf("%v became %v, %v is nearer", f, h, v)
			}
		}
	})
	rapid.Check(t, func(t *rapid.T) {
		values := make([]float32, rapid.IntRange(0, 23).Draw(t, "n"))
		want, first := make([]byte, 2*len(values)), -1
		for i := range values {
			bits := rapid.Uint32()
			if rapid.IntRange(0, 20).Draw(t, "special") > 0 {
				bits = rapid.Custom(func(t *rapid.T) uint32 {
					return rapid.Uint32Range(0, 0x7f7f7fff).Draw(t, "size") | uint32(rapid.IntRange(0, 1).Draw(t, "sign"))<<31
				})
			} else if rapid.Bool().Draw(t, "edge") {
				bits = rapid.SampledFrom([]uint32{0x7f7f7fff, 0x7f7f8000, 0x7f7fffff, 0x7f800000, 0x7f800001, 0xff7f8000, 0xffffffff, 1, 0x80000000})
			}
			values[i] = math.Float32frombits(bits.Draw(t, "bits"))
			if h := toBF16(values[i]); first < 0 && !finite(fromBF16(h)) {
				first = i
			} else if first < 0 {
				binary.LittleEndian.PutUint16(want[2*i:], h)
			}
		}
		got := make([]byte, len(want))
		if at := roundBF16(got, values); at != first || first < 0 && !bytes.Equal(got, want) || first > 0 && !bytes.Equal(got[:2*first], want[:2*first]) {
			t.Fatalf("%v: %x, first %d, want %x, %d", values, got, at, want, first)
		}
	})
	for h, want := range map[uint16]float32{0x3c00: 1, 0xc000: -2, 0x0001: 0x1p-24, 0x7bff: 65504, 0x0400: 0x1p-14, 0x8000: 0} {
		if got := fromF16(h); got != want {
			t.Errorf("float16 %#x is %v, want %v", h, got, want)
		}
	}
}

func TestParseRef(t *testing.T) {
	one := func(p RefPart) Ref { return Ref{[]RefPart{p}} }
	for s, want := range map[string]Ref{
		"a":                   one(RefPart{Name: "a", Weight: 1}),
		"a-b.c_1@7":           one(RefPart{Name: "a-b.c_1", Number: 7, Weight: 1}),
		"t/a":                 one(RefPart{Tenant: "t", Name: "a", Weight: 1}),
		"a:0.7+b:0.3":         {[]RefPart{{Name: "a", Weight: 0.7}, {Name: "b", Weight: 0.3}}},
		"t/a@2:-1.50+b@3+c:0": {[]RefPart{{Tenant: "t", Name: "a", Number: 2, Weight: -1.5}, {Name: "b", Number: 3, Weight: 1}, {Name: "c"}}},
	} {
		got, err := ParseRef(s)
		if err != nil {
			t.Errorf("%q: %v", s, err)
			continue
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%q: %s", s, d)
		}
		if again, err := ParseRef(got.String()); err != nil || cmp.Diff(got, again) != "" {
			t.Errorf("%q: %q reads as %v, %v", s, got.String(), again, err)
		}
	}
	for _, s := range []string{"", "+", "a+", "A", "a b", "../a", "a/../b", "t/", "/a", "a/b/c", "a..b", ".a", "a@", "a@0", "a@-1", "a@01", "a@x", "a:", "a:x", "a:1e3",
		"a:NaN", "a:Inf", "a:0x1", "a@1@2", "a:1:2", "ä", "a\x00", strings.Repeat("a", 64), strings.Repeat("a+", 16) + "a", "*", "a@99999999999999999999"} {
		if r, err := ParseRef(s); !errors.Is(err, ErrInvalidName) {
			t.Errorf("%q: %v, %v", s, r, err)
		}
	}
}

func FuzzParseRef(f *testing.F) {
	for _, s := range []string{"a", "t/a@2:-1.5+b@3", "a:0.7+b:0.3", "..", "a@"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseRef(s)
		if err != nil {
			return
		}
		again, err := ParseRef(r.String())
		if err != nil || cmp.Diff(r, again) != "" {
			t.Errorf("%q → %q → %v, %v", s, r.String(), again, err)
		}
	})
}

// Each number is scaled by itself, however many there are.
func TestScaleBF16(t *testing.T) {
	for n := range 14 {
		values := make([]uint16, n)
		for i := range values {
			values[i] = uint16(0x3f80 + 7*i | i%2<<15)
		}
		got := make([]float32, n)
		scaleBF16(got, bf16Bytes(values), 0.7)
		for i, v := range values {
			if want := 0.7 * fromBF16(v); got[i] != want {
				t.Errorf("%d of %d is %v, want %v", i, n, got[i], want)
			}
		}
	}
}

// Every number is packed by itself, also beside one that is not finite in the working type, which PackInto reports.
func TestPackInto(t *testing.T) {
	w := NewWeights(small, 3, 6)
	for i := range w.Data {
		w.Data[i] = float32(i%257) - 128.3
	}
	for _, bad := range []float32{1, float32(math.Inf(-1)), float32(math.NaN()), math.MaxFloat32} {
		at := len(w.Data)/2 + 1
		w.Data[at] = bad
		for _, d := range []DType{BF16, F32} {
			out := make([]byte, len(w.Data)*d.Size())
			if whole := w.PackInto(out, d); whole != (bad == 1) {
				t.Errorf("with %v: all finite: %v", bad, whole)
			}
			for i, v := range w.Data {
				v *= 2
				if d == BF16 {
					if got, want := binary.LittleEndian.Uint16(out[2*i:]), toBF16(v); got != want {
						t.Fatalf("with %v: number %d is %#x, want %#x", bad, i, got, want)
					}
				} else if got, want := binary.LittleEndian.Uint32(out[4*i:]), math.Float32bits(v); got != want {
					t.Fatalf("with %v: number %d is %#x, want %#x", bad, i, got, want)
				}
			}
		}
	}
}
