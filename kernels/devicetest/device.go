package devicetest

import (
	"flag"
	"testing"

	"bhive/kernels"
	"bhive/kernels/cpu"
	"bhive/kernels/cuda"
)

var (
	on        = flag.String("device", "cpu", "device that the package's tests run on: cpu or cuda")
	precision = flag.String("precision", "float32", "what the device works in: float32, or with cuda bfloat16 too")
)

// OnCPU reports whether the tests run on the CPU.
func OnCPU() bool { return *on == "cpu" }

// Rounds reports whether the device works in bfloat16.
func Rounds() bool { return *precision == "bfloat16" }

// Format is that of the base's weights.
func Format() kernels.Format {
	if Rounds() {
		return kernels.FormatBF16
	}
	return kernels.FormatF32
}

// Open opens the device for one test; the CPU with two threads. invariant asks a GPU for the same bits in every batch.
func Open(t testing.TB, invariant bool) kernels.Backend {
	t.Helper()
	working := kernels.F32
	if Rounds() {
		working = kernels.BF16
	}
	var be kernels.Backend
	var err error
	switch *on {
	case "cuda":
		be, err = cuda.Open(cuda.Config{Working: working, BatchInvariant: invariant})
	default:
		be, err = cpu.Open(cpu.Config{Threads: 2, Working: working})
	}
	return Closing(t, be, err)
}

// Closing closes what was opened when the test ends, and ends the test where it was not.
func Closing(t testing.TB, be kernels.Backend, err error) kernels.Backend {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := be.Close(); err != nil {
			t.Error(err)
		}
	})
	return be
}
