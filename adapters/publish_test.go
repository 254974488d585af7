package adapters_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"

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

// The parts of a publication at 8B: the whole way to durable and live, of a B in memory and of one that comes in pieces; encoding alone, hashing alone, the disk
// alone, and loading a version back.
func BenchmarkPublish(b *testing.B) {
	dir := b.TempDir()
	s, err := local.Open(dir, local.Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	ctx, registry, w := context.Background(), adapters.NewRegistry(s, nil), eightBWeights()
	of := adapters.Version{Name: "a", BasisDigest: strings.Repeat("0", 64), BaseHash: strings.Repeat("1", 64)}
	var v adapters.Version
	save := func() {
		w.Data[0]++ // new content
		if v, err = registry.Save(ctx, "", of, w, adapters.PublishOptions{}); err != nil {
			b.Fatal(err)
		}
	}
	arrive := func() { // as a device gives it, only at once
		w.Data[0]++
		e := adapters.NewEncoding(*w, nil)
		var takers errgroup.Group
		takers.SetLimit(max(1, runtime.GOMAXPROCS(0)/2))
		go func() {
			const piece = 512 << 10
			for at := 0; at < len(w.Data); at += piece {
				takers.Go(func() error { e.Put(at, w.Data[at:min(at+piece, len(w.Data))]); return nil })
			}
		}()
		if v, err = registry.SaveEncoding(ctx, "", of, e, adapters.PublishOptions{}); err != nil {
			b.Fatal(err)
		}
	}
	// forget gives the disk's cache back: memory that was never used before is slow.
	forget := func(b *testing.B) {
		b.StopTimer()
		for number := 1; number < v.Number; number++ {
			if err := registry.Delete(ctx, "", "a", number); err != nil && !errors.Is(err, adapters.ErrNotFound) {
				b.Fatal(err)
			}
		}
		if _, err := s.GC(ctx, 0); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
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
			if _, err := s.PutBlob(ctx, "", bytes.NewReader(blob)); err != nil {
				b.Fatal(err)
			}
			forget(b)
		}
	})
	b.Run("hash", func(b *testing.B) {
		blob := make([]byte, v.Bytes)
		for b.Loop() {
			sha256.Sum256(blob)
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
			forget(b)
		}
	})
	b.Run("arriving", func(b *testing.B) {
		for b.Loop() {
			arrive()
			forget(b)
		}
	})
	b.Run("load", func(b *testing.B) {
		for b.Loop() {
			if _, _, err := registry.Load(ctx, v, eightB); err != nil {
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
