package infer

import (
	"encoding/binary"
	"math"
	"testing"

	"bhive/adapters/safetensors"
)

func tensor(t testing.TB, f *safetensors.File, name string, want safetensors.DType) []byte {
	t.Helper()
	x, err := f.Tensor(name)
	if err != nil {
		t.Fatal(err)
	}
	if x.DType != want {
		t.Fatalf("tensor %s is %s, want %s", name, x.DType, want)
	}
	return x.Data
}

func int32s(t testing.TB, f *safetensors.File, name string) []int32 {
	t.Helper()
	b := tensor(t, f, name, safetensors.I32)
	out := make([]int32, len(b)/4)
	for i := range out {
		out[i] = int32(binary.LittleEndian.Uint32(b[4*i:]))
	}
	return out
}

func float32s(t testing.TB, f *safetensors.File, name string) []float32 {
	t.Helper()
	b := tensor(t, f, name, safetensors.F32)
	out := make([]float32, len(b)/4)
	for i := range out {
		out[i] = math.Float32frombits(binary.LittleEndian.Uint32(b[4*i:]))
	}
	return out
}

// float16s widens a float16 tensor.
func float16s(t testing.TB, f *safetensors.File, name string) []float32 {
	t.Helper()
	b := tensor(t, f, name, safetensors.F16)
	out := make([]float32, len(b)/2)
	for i := range out {
		h := binary.LittleEndian.Uint16(b[2*i:])
		exponent, mantissa := int(h>>10&31), float64(h&1023)
		v := 0.0
		switch exponent {
		case 0:
			v = math.Ldexp(mantissa, -24)
		case 31:
			t.Fatalf("tensor %s holds an infinity", name)
		default:
			v = math.Ldexp(1024+mantissa, exponent-25)
		}
		if h>>15 == 1 {
			v = -v
		}
		out[i] = float32(v)
	}
	return out
}
