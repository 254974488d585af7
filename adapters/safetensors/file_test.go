package safetensors

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// reference.safetensors was written by the reference implementation (Python, safetensors 0.8): one tensor of each of
// NumPy's dtypes, a scalar, an empty one, and a name that JSON escapes.
func reference(t testing.TB) []byte {
	data, err := os.ReadFile("testdata/reference.safetensors")
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func open(data []byte) (*File, error) {
	return Open(bytes.NewReader(data), int64(len(data)))
}

// raw builds a file from a header as it stands.
func raw(header string, data int) []byte {
	b := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
	return append(append(b, header...), make([]byte, data)...)
}

func all(t testing.TB, f *File) []Tensor {
	var ts []Tensor
	for _, n := range f.Names() {
		x, err := f.Tensor(n)
		if err != nil {
			t.Fatal(err)
		}
		ts = append(ts, x)
	}
	return ts
}

func TestWriteEqualsReference(t *testing.T) {
	want := reference(t)
	f, err := open(want)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(f.Names()); n != 13 {
		t.Errorf("%d tensors, want 13", n)
	}
	if got := f.Metadata()["format"]; got != "np <&>" {
		t.Errorf("metadata format = %q", got)
	}
	x, err := f.Tensor("z.i64")
	if err != nil || x.DType != I64 || !slices.Equal(x.Shape, []int{4}) || binary.LittleEndian.Uint64(x.Data[24:]) != 3 {
		t.Errorf("z.i64 = %+v, %v", x, err)
	}
	if s, _ := f.Info("scalar"); len(s.Shape) != 0 || s.Size != 4 {
		t.Errorf("scalar = %+v", s)
	}
	if _, err := f.Tensor("none"); !errors.Is(err, ErrNoTensor) || !strings.Contains(err.Error(), "none") {
		t.Errorf("absent tensor: %v", err)
	}
	ts := all(t, f)
	slices.Reverse(ts)
	for i := range ts[:5] { // some of them streamed
		ts[i].From, ts[i].Data = bytes.NewReader(ts[i].Data), nil
	}
	var got bytes.Buffer
	if err := Write(&got, ts, f.Metadata()); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Bytes(), want) {
		t.Errorf("written file differs from the reference\n got %q\nwant %q", head(got.Bytes()), head(want))
	}
	if begins, err := Head(ts, f.Metadata()); err != nil || !bytes.Equal(begins, head(want)) {
		t.Errorf("the file begins with %q, %v", begins, err)
	}
}

func head(b []byte) []byte { return b[:min(len(b), 8+int(binary.LittleEndian.Uint64(b)))] }

func TestOpenRefuses(t *testing.T) {
	good := raw(`{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}`, 8)
	if _, err := open(good); err != nil {
		t.Fatal(err)
	}
	long := slices.Clone(good)
	binary.LittleEndian.PutUint64(long, MaxHeader+1)
	for _, c := range []struct {
		name, want string
		data       []byte
	}{
		{"empty", "too few", nil},
		{"seven bytes", "too few", make([]byte, 7)},
		{"header over the limit", "at most 100000000", long},
		{"header over the file", "in a file of", raw("{}", 0)[:9]},
		{"no header", "not a JSON object", raw("", 0)},
		{"an array", "not a JSON object", raw("[]", 0)},
		{"cut header", `"a": unexpected EOF`, raw(`{"a":`, 0)},
		{"bad UTF-8", "UTF-8", raw("{\"\xff\":1}", 0)},
		{"trailing text", "goes on", raw(`{} {}`, 0)},
		{"data truncated", `"a": data_offsets [0, 8] outside the 7`, good[:len(good)-1]},
		{"data too long", "1 bytes after the last", append(slices.Clone(good), 0)},
		{"unknown dtype", `"a": dtype "F33" is unknown`, raw(`{"a":{"dtype":"F33","shape":[2],"data_offsets":[0,8]}}`, 8)},
		{"no dtype", `"a": dtype is missing`, raw(`{"a":{"shape":[2],"data_offsets":[0,8]}}`, 8)},
		{"no shape", `"a": shape is missing`, raw(`{"a":{"dtype":"F32","data_offsets":[0,8]}}`, 8)},
		{"no offsets", `"a": data_offsets`, raw(`{"a":{"dtype":"F32","shape":[2]}}`, 8)},
		{"three offsets", `"a": data_offsets`, raw(`{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8,9]}}`, 8)},
		{"negative shape", `"a"`, raw(`{"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}`, 8)},
		{"shape overflows", `"a": shape`, raw(`{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}}`, 0)},
		{"shape wraps to the size", `"a": shape`, raw(`{"a":{"dtype":"F32","shape":[4611686018427387906],"data_offsets":[0,8]}}`, 8)},
		{"shape lies", `"a": F32[3] takes 12 bytes`, raw(`{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}`, 8)},
		{"offsets reversed", `"a": data_offsets [8, 0]`, raw(`{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}`, 8)},
		{"duplicate", `"a" occurs twice`, raw(`{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}`, 2)},
		{"overlap", `"b" overlaps`, raw(`{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}`, 6)},
		{"gap", `"b" leaves a gap of 1`, raw(`{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}}`, 3)},
		{"metadata of numbers", "__metadata__", raw(`{"__metadata__":{"a":1}}`, 0)},
	} {
		if _, err := open(c.data); !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want one with %q", c.name, err, c.want)
		}
	}
}

func TestWriteRefuses(t *testing.T) {
	a := Tensor{Name: "a", DType: U8, Shape: []int{2}, Data: []byte{1, 2}}
	for _, c := range []struct {
		want string
		ts   []Tensor
	}{
		{`"a" is taken`, []Tensor{a, a}},
		{"is taken", []Tensor{{Name: "__metadata__", DType: U8, Shape: []int{0}}}},
		{"takes 2 bytes, got 1", []Tensor{{Name: "a", DType: U8, Shape: []int{2}, Data: []byte{1}}}},
		{"neither Data nor From", []Tensor{{Name: "a", DType: U8, Shape: []int{2}}}},
		{"unknown", []Tensor{{Name: "a", DType: "X", Shape: []int{2}, Data: []byte{1}}}},
		{"not UTF-8", []Tensor{{Name: "\xff", DType: U8, Shape: []int{0}}}},
		{"negative", []Tensor{{Name: "a", DType: U8, Shape: []int{-2}, Data: []byte{1}}}},
	} {
		var b bytes.Buffer
		if err := Write(&b, c.ts, nil); !errors.Is(err, ErrTensor) || !strings.Contains(err.Error(), c.want) || b.Len() > 0 {
			t.Errorf("error %v, %d bytes written, want an error with %q and none", err, b.Len(), c.want)
		}
	}
	short := Tensor{Name: "a", DType: U8, Shape: []int{2}, From: bytes.NewReader([]byte{1})}
	if err := Write(&bytes.Buffer{}, []Tensor{short}, nil); err == nil || !strings.Contains(err.Error(), `"a"`) {
		t.Errorf("short stream: %v", err)
	}
}

func TestRoundTrip(t *testing.T) {
	dtypes := []DType{F64, F32, F16, BF16, F8E4M3, F8E5M2, C64, I64, I32, I16, I8, U64, U32, U16, U8, Bool}
	rapid.Check(t, func(t *rapid.T) {
		names := rapid.SliceOfDistinct(rapid.String(), rapid.ID[string]).Draw(t, "names")
		want := map[string]Tensor{}
		var ts []Tensor
		for _, n := range names {
			if n == metadataKey {
				continue
			}
			d := rapid.SampledFrom(dtypes).Draw(t, "dtype")
			shape := rapid.SliceOfN(rapid.IntRange(0, 5), 0, 3).Draw(t, "shape")
			size := d.Size()
			for _, s := range shape {
				size *= s
			}
			x := Tensor{Name: n, DType: d, Shape: shape, Data: rapid.SliceOfN(rapid.Byte(), size, size).Draw(t, "data")}
			ts, want[n] = append(ts, x), x
		}
		meta := rapid.MapOf(rapid.String(), rapid.String()).Draw(t, "metadata")
		var b, again bytes.Buffer
		if err := Write(&b, ts, meta); err != nil {
			t.Fatal(err)
		}
		f, err := open(b.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		if len(f.Names()) != len(want) || len(f.Metadata()) != len(meta) {
			t.Fatalf("%d tensors and %d metadata, want %d and %d", len(f.Names()), len(f.Metadata()), len(want), len(meta))
		}
		for k, v := range meta {
			if f.Metadata()[k] != v {
				t.Fatalf("metadata %q = %q, want %q", k, f.Metadata()[k], v)
			}
		}
		for n, w := range want {
			got, err := f.Tensor(n)
			if err != nil || got.DType != w.DType || !slices.Equal(got.Shape, w.Shape) || !bytes.Equal(got.Data, w.Data) {
				t.Fatalf("tensor %q = %+v, %v; want %+v", n, got, err, w)
			}
			if i, _ := f.Info(n); i.Size > 0 && i.Offset%int64(w.DType.Size()) != 0 {
				t.Fatalf("tensor %q of %s lies at %d", n, w.DType, i.Offset)
			}
		}
		slices.Reverse(ts)
		if err := Write(&again, ts, meta); err != nil || !bytes.Equal(b.Bytes(), again.Bytes()) {
			t.Fatalf("written in another order the file differs (%v)", err)
		}
	})
}

func FuzzSafetensors(f *testing.F) {
	f.Add(reference(f))
	f.Add(raw("{}", 0))
	f.Add(raw(`{"__metadata__":{"a":"b"},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}`, 8))
	f.Fuzz(func(t *testing.T, data []byte) {
		file, err := open(data)
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Fatalf("error is not ErrFormat: %v", err)
			}
			return
		}
		var b bytes.Buffer
		if err := Write(&b, all(t, file), file.Metadata()); err != nil {
			t.Fatalf("cannot write what was read: %v", err)
		}
		if _, err := open(b.Bytes()); err != nil {
			t.Fatalf("cannot read what was written: %v", err)
		}
	})
}
