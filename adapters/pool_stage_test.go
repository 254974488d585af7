package adapters

import (
	"bytes"
	"math"
	"slices"
	"strings"
	"testing"
)

// encodeFor encodes a B and says what its version will be.
func encodeFor(t *testing.T, name string, w *Weights) (*Encoding, Version) {
	t.Helper()
	b := encodingOf(w)
	if err := b.wait(); err != nil {
		t.Fatal(err)
	}
	return b, Version{Tenant: "t", Name: name, Number: 1, Rank: w.Rank, Alpha: w.Alpha, Scaling: w.Scaling, BasisDigest: "rows", BaseHash: "base"}
}

// stageable is a B with values that are rounded twice, a module of zeros, one of negative zeros, and some of them beside others.
func stageable(rank int) *Weights {
	w := NewWeights(small, rank, 0.7*float64(rank))
	for i := range w.Data {
		w.Data[i] = float32(math.Sin(float64(3*i + 1)))
	}
	w.Data[1] = float32(math.Copysign(0, -1))
	clear(w.Module(0, K))
	for i, m := 0, w.Module(0, V); i < len(m); i++ {
		m[i] = float32(math.Copysign(0, -1))
	}
	return w
}

// What is staged is bit for bit what loading the blob gives, and the first lease of the version needs no store.
func TestPoolStage(t *testing.T) {
	for _, d := range []DType{BF16, F32} {
		for name, w := range map[string]*Weights{"some": stageable(3), "zeros": NewWeights(small, 2, 4)} {
			p, blobs, dev := newPool(t, PoolConfig{DType: d})
			b, v := encodeFor(t, name, w)
			s := p.stage(b)
			if st := p.Stats(); st.HostBytes == 0 || len(st.Resident)+len(st.Waiting) != 0 {
				t.Errorf("%s: staged: %+v", name, st)
			}
			s.publish(v)
			l := acquire(t, p, target(v))
			pump(t, p, dev, l) // blobs holds nothing
			if l.Err() != nil || len(blobs.blobs) != 0 || p.Stats().HostHits != 1 {
				t.Fatalf("%s: %v, %+v", name, l.Err(), p.Stats())
			}
			file := blobOf(t, b)
			loaded, _, err := DecodeBlob(bytes.NewReader(file), int64(len(file)), small)
			if err != nil {
				t.Fatal(err)
			}
			if got := dev.slots[l.Slot()]; !bytes.Equal(got.data, loaded.Pack(d)) || got.rank != w.Rank {
				t.Errorf("%s: the slot holds something else than what the store would have given", name)
			}
			l.Release()
		}
	}
}

// What is not published, or cannot be kept, leaves nothing, and harms no other entry.
func TestPoolStageEnds(t *testing.T) {
	p, blobs, dev := newPool(t, PoolConfig{HostBytes: blobBytes(3)})
	b, v := encodeFor(t, "a", stageable(3))
	p.stage(b).drop()
	if n := p.Stats().HostBytes; n != 0 || len(p.entries) != 0 {
		t.Errorf("dropped: %d bytes on the host, %d entries", n, len(p.entries))
	}
	// It is evicted before it was published.
	s := p.stage(b)
	other := blobs.add(t, "other", 1, 2)
	l := acquire(t, p, target(other))
	pump(t, p, dev, l)
	s.publish(v)
	s.drop()
	if l.Err() != nil || p.entries[target(v).content()] != nil || p.Stats().HostBytes != blobBytes(2) {
		t.Errorf("evicted: %v, %+v", l.Err(), p.Stats())
	}
	// There is no room: what is in host memory is about to go to the device.
	l.Release()
	p.Forget("t", "other", 0)
	p.Pump()
	waiting := acquire(t, p, target(blobs.add(t, "waiting", 1, 2)))
	for p.Stats().HostBytes == 0 || !func() bool { p.mu.Lock(); defer p.mu.Unlock(); return p.deviceQ.Len() == 1 }() {
	}
	if s := p.stage(b); s.e != nil {
		t.Error("staged where there is no room")
	}
	pump(t, p, dev, waiting)
	waiting.Release()
	// Somebody has leased the version already: that entry stays.
	s = p.stage(b)
	v.SHA256 = strings.Repeat("0", 64)
	first := acquire(t, p, target(v)) // fails: blobs has no such
	entry := first.entry
	s.publish(v)
	pump(t, p, dev, first)
	if first.entry != entry || slices.Contains(p.Stats().Resident, target(v).Key()) {
		t.Error("a staged B took the place of a leased entry")
	}
	first.Release()
	// It overflows the working type once it is scaled.
	huge := NewWeights(small, 1, 4)
	huge.Data[0] = 3e38
	h, _ := encodeFor(t, "huge", huge)
	if s := p.stage(h); s.e != nil {
		t.Error("staged what overflows")
	}
	// Close frees what is staged.
	s = p.stage(b)
	if s.e == nil {
		t.Fatal("not staged")
	}
	_ = p.Close()
	s.publish(v)
	s.drop()
	if p.stage(b).e != nil || p.hostBytes != 0 {
		t.Errorf("after Close: %d bytes on the host", p.hostBytes)
	}
}
