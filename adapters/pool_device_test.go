package adapters

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"sync"
	"testing"
	"time"
)

// fakeDevice checks every use of its memory and slots.
type fakeDevice struct {
	t       fataler
	limit   int64
	used    int64
	blocks  map[*fakeBlock]bool
	slots   map[int]*fakeBlock
	pending []*fakeBlock
}

type fataler interface {
	Fatalf(string, ...any)
	Helper()
}

type fakeBlock struct {
	data     []byte
	src      []byte
	uploaded bool
	rank     int
}

func newFakeDevice(t fataler, limit int64) *fakeDevice {
	return &fakeDevice{t: t, limit: limit, blocks: map[*fakeBlock]bool{}, slots: map[int]*fakeBlock{}}
}

func (d *fakeDevice) Alloc(n int64) (Block, error) {
	if d.used+n > d.limit {
		return nil, ErrNoMemory
	}
	d.used += n
	b := &fakeBlock{data: make([]byte, n)}
	d.blocks[b] = true
	return b, nil
}

func (d *fakeDevice) Free(b Block) {
	fb := b.(*fakeBlock)
	if !d.blocks[fb] {
		d.t.Fatalf("freed twice")
	}
	for s, in := range d.slots {
		if in == fb {
			d.t.Fatalf("freed while in slot %d", s)
		}
	}
	if slices.Contains(d.pending, fb) {
		d.t.Fatalf("freed while being uploaded")
	}
	d.used -= int64(len(fb.data))
	delete(d.blocks, fb)
}

func (d *fakeDevice) Upload(b Block, src []byte) func() bool {
	fb := b.(*fakeBlock)
	if len(src) != len(fb.data) {
		d.t.Fatalf("upload of %d bytes into %d", len(src), len(fb.data))
	}
	fb.src = src
	d.pending = append(d.pending, fb)
	return func() bool { return fb.uploaded }
}

// finish ends the i-th pending upload.
func (d *fakeDevice) finish(i int) {
	fb := d.pending[i]
	copy(fb.data, fb.src) // a copy that ends late sees what src holds then
	fb.uploaded = true
	d.pending = slices.Delete(d.pending, i, i+1)
}

func (d *fakeDevice) SetSlot(slot int, b Block, rank int) {
	if b == nil {
		delete(d.slots, slot)
		return
	}
	if d.slots[slot] != nil {
		d.t.Fatalf("slot %d set while taken", slot)
	}
	fb := b.(*fakeBlock)
	if !fb.uploaded {
		d.t.Fatalf("slot %d set before its upload ended", slot)
	}
	fb.rank = rank
	d.slots[slot] = fb
}

type memBlob struct{ *bytes.Reader }

func (memBlob) Close() error { return nil }

// fakeBlobs serves blobs; a gate holds fetches back.
type fakeBlobs struct {
	mu    sync.Mutex
	blobs map[string][]byte
	gate  chan struct{}
}

func (f *fakeBlobs) OpenBlob(ctx context.Context, tenant, sha string) (BlobReader, error) {
	if f.gate != nil {
		select {
		case <-f.gate:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	b, ok := f.blobs[sha]
	if !ok {
		return nil, ErrNotFound
	}
	return memBlob{bytes.NewReader(b)}, nil
}

// add makes a version with recognisable weights.
func (f *fakeBlobs) add(t testing.TB, name string, number, rank int) Version {
	t.Helper()
	w := ramp(rank, Q, Down)
	w.Module(0, V)[0] = float32(number)
	return f.addWeights(t, name, number, w)
}

func (f *fakeBlobs) addWeights(t testing.TB, name string, number int, w *Weights) Version {
	t.Helper()
	raw := encode(t, w)
	sum := sha256.Sum256(raw)
	v := Version{Tenant: "t", Name: name, Number: number, Rank: w.Rank, Alpha: w.Alpha, Scaling: w.Scaling, BasisDigest: "rows", BaseHash: "base",
		SHA256: hex.EncodeToString(sum[:]), Bytes: int64(len(raw))}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.blobs[v.SHA256] = raw
	return v
}

func target(vs ...Version) Target {
	var t Target
	for _, v := range vs {
		t.Parts = append(t.Parts, TargetPart{v, 1})
	}
	return t
}

func blobBytes(rank int) int64 { return int64(rank * small.OutTotal() * 2) }

func newPool(t testing.TB, c PoolConfig) (*Pool, *fakeBlobs, *fakeDevice) {
	t.Helper()
	c.Geometry = small
	blobs, dev := &fakeBlobs{blobs: map[string][]byte{}}, newFakeDevice(t, 1<<40)
	p, err := NewPool(c, blobs, dev)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for len(dev.pending) > 0 {
			dev.finish(0)
		}
		_ = p.Close()
		if len(dev.blocks) != 0 || len(dev.slots) != 0 {
			t.Errorf("Close left %d blocks and %d slots", len(dev.blocks), len(dev.slots))
		}
	})
	return p, blobs, dev
}

// pump pumps and ends uploads until the lease is ready.
func pump(t testing.TB, p *Pool, dev *fakeDevice, l *Lease) {
	t.Helper()
	for range 20000 {
		p.Pump()
		for len(dev.pending) > 0 {
			dev.finish(0)
		}
		select {
		case <-l.Ready():
			return
		default:
			time.Sleep(100 * time.Microsecond)
		}
	}
	t.Fatalf("%s never got ready: %+v", l.Key(), p.Stats())
}

func acquire(t testing.TB, p *Pool, tg Target) *Lease {
	t.Helper()
	l, err := p.Acquire(tg)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func isReady(l *Lease) bool {
	select {
	case <-l.Ready():
		return true
	default:
		return false
	}
}
