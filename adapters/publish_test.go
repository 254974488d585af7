package adapters_test

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"bhive/adapters"
	"bhive/adapters/local"
)

// eightB is Llama-3-8B's shape; a B of rank 16 takes 40 MiB in bfloat16.
var eightB = adapters.Geometry{Layers: 32, Hidden: 4096, QDim: 4096, KVDim: 1024, FeedForward: 14336}

func eightBWeights() *adapters.Weights {
	w := adapters.NewWeights(eightB, 16, 32)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range w.Data {
		w.Data[i] = r.Float32() - 0.5
	}
	return w
}

// The parts of a publication at 8B: the whole way to durable and live, encoding alone, the disk alone, and loading a version back.
func BenchmarkPublish(b *testing.B) {
	dir := b.TempDir()
	s, err := local.Open(dir, local.Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	registry, w := adapters.NewRegistry(s, nil), eightBWeights()
	var v adapters.Version
	save := func() {
		w.Data[0]++ // new content
		if v, err = registry.Save(context.Background(), "", adapters.Version{Name: "a", BasisDigest: strings.Repeat("0", 64), BaseHash: strings.Repeat("1", 64)}, w, adapters.PublishOptions{}); err != nil {
			b.Fatal(err)
		}
	}
	save()
	b.Run("encode", func(b *testing.B) {
		for b.Loop() {
			if err := adapters.EncodeBlob(io.Discard, w, "", ""); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("store", func(b *testing.B) {
		blob := make([]byte, v.Bytes)
		for i := uint32(1); b.Loop(); i++ {
			blob[0], blob[1] = byte(i), byte(i>>8)
			if _, err := s.PutBlob(context.Background(), "", bytes.NewReader(blob)); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("disk", func(b *testing.B) { // the floor
		blob := make([]byte, v.Bytes)
		for b.Loop() {
			f, err := os.Create(filepath.Join(dir, "floor"))
			if err != nil {
				b.Fatal(err)
			}
			if _, err := f.Write(blob); err != nil {
				b.Fatal(err)
			}
			if err := f.Sync(); err != nil {
				b.Fatal(err)
			}
			_ = f.Close()
		}
	})
	b.Run("save", func(b *testing.B) {
		for b.Loop() {
			save()
		}
	})
	b.Run("load", func(b *testing.B) {
		for b.Loop() {
			if _, _, err := registry.Load(context.Background(), v, eightB); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("pack", func(b *testing.B) {
		out := make([]byte, 2*len(w.Data))
		for b.Loop() {
			w.PackInto(out, adapters.BF16)
		}
	})
}
