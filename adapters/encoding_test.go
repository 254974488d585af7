package adapters

import (
	"bytes"
	"errors"
	"io"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/iotest"
)

// blobOf is the whole blob.
func blobOf(t *testing.T, e *Encoding) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := e.Write(&b, "rows", "base"); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func readerOf(t *testing.T, e *Encoding) *encodingReader {
	t.Helper()
	r, err := e.reader("rows", "base")
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// arrive puts a B in pieces of random sizes, in any order and at once.
func arrive(e *Encoding, w *Weights) {
	var pieces sync.WaitGroup
	for at := 0; at < len(w.Data); {
		n := min(1+rand.IntN(700), len(w.Data)-at)
		from := at
		pieces.Go(func() { e.Put(from, w.Data[from:from+n]) })
		at += n
	}
	pieces.Wait()
}

// A blob that is read while its B is being encoded, or arrives, is the blob, in whatever pieces it is read.
func TestEncodingReader(t *testing.T) {
	for _, w := range []*Weights{stageable(3), NewWeights(small, 2, 4)} {
		want := encode(t, w)
		for _, wrap := range []func(io.Reader) io.Reader{iotest.OneByteReader, iotest.HalfReader, iotest.DataErrReader} {
			arriving, known := NewEncoding(*w, nil), encodingOf(w)
			if err := known.wait(); err != nil {
				t.Fatal(err)
			}
			arriving.likely = slices.Clone(known.likely)
			go arrive(arriving, w)
			for _, e := range []*Encoding{encodingOf(w), arriving} {
				got, err := io.ReadAll(wrap(readerOf(t, e)))
				if err != nil || !bytes.Equal(got, want) || !bytes.Equal(blobOf(t, e), want) {
					t.Errorf("%d bytes were read, %d are to be, %v", len(got), len(want), err)
				}
			}
		}
		if _, _, err := DecodeBlob(bytes.NewReader(want), int64(len(want)), small); err != nil {
			t.Error(err)
		}
	}
}

// A value that bfloat16 cannot hold is found wherever it is, and the first of a module is named.
func TestEncodingRefuses(t *testing.T) {
	w := stageable(3)
	w.Module(1, Down)[5], w.Module(1, Down)[70] = float32(math.Inf(1)), float32(math.NaN())
	arriving := NewEncoding(*w, nil)
	arrive(arriving, w)
	for _, e := range []*Encoding{encodingOf(w), arriving} {
		var read bytes.Buffer
		_, err := io.Copy(&read, readerOf(t, e))
		if errors.Is(err, errOtherwise) { // k_proj of layer 0 is zeros
			_, err = io.Copy(&read, readerOf(t, e))
		}
		if !errors.Is(err, ErrCorrupt) {
			t.Errorf("%d bytes were read, %v", read.Len(), err)
		}
		if err := e.wait(); !errors.Is(err, ErrCorrupt) || err.Error() != "encoding an adapter: "+ErrCorrupt.Error()+": layers.1.down_proj.lora_B: element [1, 2] is +Inf" {
			t.Error(err)
		}
	}
}

// Where a B holds something is thought before it has come. Whoever began to read on a wrong thought is told, and reads the true blob then.
func TestEncodingOtherwise(t *testing.T) {
	some := func(projs ...Proj) *Weights {
		w := NewWeights(small, 2, 4)
		for layer := range small.Layers {
			for _, p := range projs {
				w.Module(layer, p)[3] = 1
			}
		}
		return w
	}
	for _, c := range []struct {
		name    string
		w       *Weights
		trained []Proj
		right   bool
	}{
		{"all of all", some(Q, K, V, O, Gate, Up, Down), nil, true},
		{"some of some", some(Q, V), []Proj{V, Q}, true},
		{"nothing of all", some(), nil, true},
		{"more than was thought", some(Q, V, Up), []Proj{Q, V}, false},
		{"less than was thought", some(Q), []Proj{Q, V}, false},
		{"nothing of some", some(), []Proj{Q, V}, false},
	} {
		want := encode(t, c.w)
		e := NewEncoding(*c.w, c.trained)
		r := readerOf(t, e)
		head := make([]byte, 100)
		if _, err := io.ReadFull(r, head); err != nil || c.right && !bytes.Equal(head, want[:len(head)]) {
			t.Fatalf("%s: its beginning, before anything has come: %q, %v", c.name, head, err)
		}
		go arrive(e, c.w)
		rest, err := io.ReadAll(r)
		if c.right != (err == nil) || !c.right && !errors.Is(err, errOtherwise) || c.right && !slices.Equal(append(head, rest...), want) {
			t.Errorf("%s: %d bytes, %v", c.name, len(rest), err)
		}
		if got, err := io.ReadAll(readerOf(t, e)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: the next reader: %d bytes, %v", c.name, len(got), err)
		}
	}
}

// Whoever waits for what will not come gets the error, and what has all come does not fail any more.
func TestEncodingFails(t *testing.T) {
	w, gone := stageable(3), errors.New("the device failed")
	e := NewEncoding(*w, nil)
	e.Put(0, w.Data[:w.Rank*small.Out(Q)+5])
	r := readerOf(t, e)
	read := make(chan error)
	go func() {
		_, err := io.Copy(io.Discard, r)
		read <- err
	}()
	e.Fail(gone)
	e.Fail(errors.New("again"))
	if err := <-read; !errors.Is(err, gone) {
		t.Error(err)
	}
	if err := e.wait(); !errors.Is(err, gone) {
		t.Error(err)
	}
	whole := encodingOf(w)
	if err := whole.wait(); err != nil {
		t.Fatal(err)
	}
	whole.Fail(gone)
	if got := blobOf(t, whole); !bytes.Equal(got, encode(t, w)) {
		t.Errorf("%d bytes", len(got))
	}
}
