package adapters

import (
	"bytes"
	"errors"
	"io"
	"math"
	"testing"
	"testing/iotest"
)

// A blob that is read while it is being encoded is the blob, in whatever pieces it is read.
func TestEncodedReader(t *testing.T) {
	for _, w := range []*Weights{stageable(3), NewWeights(small, 2, 4)} {
		want := encode(t, w)
		for _, wrap := range []func(io.Reader) io.Reader{iotest.OneByteReader, iotest.HalfReader, iotest.DataErrReader} {
			e, err := encodeBlob(w, "rows", "base")
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(wrap(e.reader()))
			if err != nil {
				t.Fatal(err)
			}
			var whole bytes.Buffer
			if err := EncodeBlob(&whole, w, "rows", "base"); err != nil || !bytes.Equal(got, whole.Bytes()) || !bytes.Equal(e.file, got) {
				t.Errorf("%d bytes were read, %d written, %v", len(got), whole.Len(), err)
			}
		}
		if _, _, err := DecodeBlob(bytes.NewReader(want), int64(len(want)), small); err != nil {
			t.Error(err)
		}
	}
	w := stageable(3)
	w.Module(1, Down)[5] = float32(math.Inf(1))
	e, err := encodeBlob(w, "rows", "base")
	if err != nil {
		t.Fatal(err)
	}
	if n, err := io.Copy(io.Discard, e.reader()); !errors.Is(err, ErrCorrupt) || n == int64(len(e.file)) {
		t.Errorf("a value that is not finite: %d bytes, %v", n, err)
	}
	if err := e.wait(); !errors.Is(err, ErrCorrupt) {
		t.Error(err)
	}
}
