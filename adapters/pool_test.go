package adapters

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
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
	raw := encode(t, w)
	sum := sha256.Sum256(raw)
	v := Version{Tenant: "t", Name: name, Number: number, Rank: rank, Alpha: w.Alpha, Scaling: w.Scaling, BasisDigest: "rows", BaseHash: "base",
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

func TestPoolLife(t *testing.T) {
	p, blobs, dev := newPool(t, PoolConfig{DeviceBytes: 2 * blobBytes(2), HostBytes: blobBytes(6)})
	base := acquire(t, p, Target{})
	if !isReady(base) || base.Slot() != BaseSlot || base.Rank() != 0 || base.Key() != "" {
		t.Error("the base is not ready at once")
	}
	a, b, c := blobs.add(t, "a", 1, 2), blobs.add(t, "b", 1, 2), blobs.add(t, "c", 1, 2)
	la := acquire(t, p, target(a))
	if isReady(la) {
		t.Fatal("ready before it was fetched")
	}
	pump(t, p, dev, la)
	raw := blobs.blobs[a.SHA256]
	w, _, err := DecodeBlob(bytes.NewReader(raw), int64(len(raw)), small)
	if err != nil {
		t.Fatal(err)
	}
	if got := dev.slots[la.Slot()]; !bytes.Equal(got.data, w.Pack(BF16)) || got.rank != 2 {
		t.Error("the slot does not hold s·B")
	}
	again := acquire(t, p, target(a))
	if !isReady(again) || again.Slot() != la.Slot() {
		t.Error("a resident adapter is not ready at once, or twice on the device")
	}
	lb := acquire(t, p, target(b))
	pump(t, p, dev, lb)
	lc := acquire(t, p, target(c)) // no room while a and b are leased
	for range 50 {
		p.Pump()
		time.Sleep(100 * time.Microsecond)
	}
	if isReady(lc) || len(dev.blocks) != 2 {
		t.Fatal("leased adapters were evicted or the budget overrun")
	}
	la.Release()
	la.Release() // idempotent: again still holds a
	for range 10 {
		p.Pump()
	}
	if isReady(lc) {
		t.Fatal("a was evicted though it is leased still")
	}
	again.Release()
	pump(t, p, dev, lc)
	s := p.Stats()
	if d := cmp.Diff([]string{"t/b@1", "t/c@1"}, s.Resident); d != "" || s.Evictions != 1 || s.Hits != 1 || s.Misses != 3 {
		t.Errorf("%+v", s)
	}
	lb.Release()
	la2 := acquire(t, p, target(a)) // from the host tier
	pump(t, p, dev, la2)
	if s := p.Stats(); s.HostHits != 1 {
		t.Errorf("%+v", s)
	}
	la2.Release()
	lc.Release()
}

func TestPoolMix(t *testing.T) {
	p, blobs, dev := newPool(t, PoolConfig{DType: F32})
	a, b := blobs.add(t, "a", 1, 2), blobs.add(t, "b", 2, 3)
	mix := Target{[]TargetPart{{a, 0.7}, {b, 0.3}}}
	l := acquire(t, p, mix)
	pump(t, p, dev, l)
	if l.Err() != nil || l.Rank() != 3 || l.Key() != "t/a@1:0.7+t/b@2:0.3" {
		t.Fatalf("%v, rank %d, key %s", l.Err(), l.Rank(), l.Key())
	}
	wa, _, _ := loadVersion(context.Background(), blobs, a, small)
	wb, _, _ := loadVersion(context.Background(), blobs, b, small)
	if !bytes.Equal(dev.slots[l.Slot()].data, Mix([]*Weights{wa, wb}, []float64{0.7, 0.3}).Pack(F32)) {
		t.Error("the slot does not hold the mix")
	}
	l.Release()
	p.Forget("t", "b", 2)
	p.Pump()
	if s := p.Stats(); len(s.Resident) != 0 || s.DeviceBytes != 0 || s.HostBytes != 0 {
		t.Errorf("a mix with a deleted part stays: %+v", s)
	}
}

func TestPoolFailures(t *testing.T) {
	p, blobs, dev := newPool(t, PoolConfig{DeviceBytes: blobBytes(4), HostBytes: blobBytes(4), Check: func(v Version) error {
		if v.BaseHash != "base" {
			return ErrBaseMismatch
		}
		return nil
	}})
	if _, err := p.Acquire(target(blobs.add(t, "big", 1, 5))); !errors.Is(err, ErrNoMemory) {
		t.Errorf("larger than the budget: %v", err)
	}
	other := blobs.add(t, "o", 1, 2)
	other.BaseHash = "x"
	if _, err := p.Acquire(target(other)); !errors.Is(err, ErrBaseMismatch) {
		t.Errorf("another base: %v", err)
	}
	lost := blobs.add(t, "lost", 1, 2)
	raw := blobs.blobs[lost.SHA256]
	delete(blobs.blobs, lost.SHA256)
	l := acquire(t, p, target(lost))
	pump(t, p, dev, l)
	if !errors.Is(l.Err(), ErrNotFound) {
		t.Errorf("a missing blob: %v", l.Err())
	}
	l.Release()
	blobs.blobs[lost.SHA256] = append(slices.Clone(raw[:len(raw)-1]), raw[len(raw)-1]^1)
	l = acquire(t, p, target(lost))
	pump(t, p, dev, l)
	if !errors.Is(l.Err(), ErrCorrupt) {
		t.Errorf("a flipped bit: %v", l.Err())
	}
	l.Release()
	blobs.blobs[lost.SHA256] = raw // it is tried again
	l = acquire(t, p, target(lost))
	pump(t, p, dev, l)
	if l.Err() != nil {
		t.Errorf("after repair: %v", l.Err())
	}
	l.Release()
	if s := p.Stats(); s.Failures != 2 || s.Leased != 0 {
		t.Errorf("%+v", s)
	}
}

// A fetch that hangs delays neither the base nor what is resident, nor Close.
func TestPoolResidentNeverWaits(t *testing.T) {
	p, blobs, dev := newPool(t, PoolConfig{Fetchers: 1})
	a, b := blobs.add(t, "a", 1, 2), blobs.add(t, "b", 1, 2)
	la := acquire(t, p, target(a))
	pump(t, p, dev, la)
	blobs.gate = make(chan struct{})
	lb := acquire(t, p, target(b))
	if l := acquire(t, p, target(a)); !isReady(l) {
		t.Error("a resident adapter waits behind a fetch")
	}
	if d := cmp.Diff([]string{"t/b@1"}, p.Stats().Waiting); d != "" {
		t.Error(d)
	}
	_ = p.Close()
	if <-lb.Ready(); !errors.Is(lb.Err(), ErrClosed) {
		t.Errorf("after Close: %v", lb.Err())
	}
	if _, err := p.Acquire(target(a)); !errors.Is(err, ErrClosed) {
		t.Errorf("Acquire after Close: %v", err)
	}
}

func TestPoolPin(t *testing.T) {
	p, blobs, dev := newPool(t, PoolConfig{Slots: 1})
	a, b := blobs.add(t, "a", 1, 1), blobs.add(t, "b", 1, 1)
	if err := p.Pin(target(a)); err != nil {
		t.Fatal(err)
	}
	la := acquire(t, p, target(a))
	pump(t, p, dev, la)
	la.Release()
	lb := acquire(t, p, target(b))
	for range 50 {
		p.Pump()
		time.Sleep(100 * time.Microsecond)
	}
	if isReady(lb) {
		t.Fatal("a pinned adapter was evicted")
	}
	p.Unpin(target(a))
	pump(t, p, dev, lb)
	lb.Release()
}

// The pool against a model: leases keep their slot and content, slots are unique, budgets hold, nothing leaks.
func TestPoolModel(t *testing.T) {
	blobs := &fakeBlobs{blobs: map[string][]byte{}}
	var versions []Version
	for i := range 6 {
		versions = append(versions, blobs.add(t, fmt.Sprintf("a%d", i), i+1, 1+i%3))
	}
	content := map[string][]byte{}
	var targets []Target
	for _, v := range versions {
		targets = append(targets, target(v))
	}
	targets = append(targets, target(versions[0], versions[4]), Target{[]TargetPart{{versions[2], -0.5}}})
	for _, tg := range targets {
		var ws []*Weights
		var weights []float64
		for _, part := range tg.Parts {
			w, _, err := loadVersion(context.Background(), blobs, part.Version, small)
			if err != nil {
				t.Fatal(err)
			}
			ws, weights = append(ws, w), append(weights, part.Weight)
		}
		w := ws[0]
		if len(ws) > 1 || weights[0] != 1 {
			w = Mix(ws, weights)
		}
		content[tg.Key()] = w.Pack(BF16)
	}
	rapid.Check(t, func(t *rapid.T) {
		c := PoolConfig{Geometry: small, Slots: rapid.IntRange(1, 4).Draw(t, "slots"), DeviceBytes: blobBytes(rapid.IntRange(3, 7).Draw(t, "device")),
			HostBytes: blobBytes(rapid.IntRange(3, 7).Draw(t, "host")), Fetchers: rapid.IntRange(1, 3).Draw(t, "fetchers")}
		dev := newFakeDevice(t, blobBytes(rapid.IntRange(3, 8).Draw(t, "memory")))
		p, err := NewPool(c, blobs, dev)
		if err != nil {
			t.Fatal(err)
		}
		type held struct {
			l    *Lease
			slot int
		}
		var leases []*held
		pins := map[int]int{}
		check := func() {
			s := p.Stats()
			if s.DeviceBytes > c.DeviceBytes || s.HostBytes > c.HostBytes || s.DeviceBytes != dev.used || s.SlotsUsed > c.Slots || s.Leased != len(leases) {
				t.Fatalf("budgets: %+v, device has %d, %d leases", s, dev.used, len(leases))
			}
			for _, h := range leases {
				if !isReady(h.l) {
					continue
				}
				if h.l.Err() != nil {
					t.Fatalf("%s failed: %v", h.l.Key(), h.l.Err())
				}
				slot := h.l.Slot()
				if h.slot == -2 {
					h.slot = slot
				}
				if b := dev.slots[slot]; h.slot != slot || b == nil || !bytes.Equal(b.data, content[h.l.Key()]) {
					t.Fatalf("%s: slot %d, was %d", h.l.Key(), slot, h.slot)
				}
			}
		}
		pick := func(t *rapid.T) int { return rapid.IntRange(0, len(targets)-1).Draw(t, "target") }
		t.Repeat(map[string]func(*rapid.T){
			"": func(*rapid.T) { check() },
			"acquire": func(t *rapid.T) {
				l, err := p.Acquire(targets[pick(t)])
				if err != nil {
					t.Fatal(err)
				}
				leases = append(leases, &held{l, -2})
			},
			"release": func(t *rapid.T) {
				if len(leases) == 0 {
					t.Skip()
				}
				i := rapid.IntRange(0, len(leases)-1).Draw(t, "lease")
				leases[i].l.Release()
				leases = slices.Delete(leases, i, i+1)
			},
			"pump":  func(*rapid.T) { p.Pump() },
			"pump2": func(*rapid.T) { time.Sleep(20 * time.Microsecond); p.Pump() },
			"finish": func(t *rapid.T) {
				if len(dev.pending) == 0 {
					t.Skip()
				}
				dev.finish(rapid.IntRange(0, len(dev.pending)-1).Draw(t, "upload"))
			},
			"forget": func(t *rapid.T) {
				v := rapid.SampledFrom(versions).Draw(t, "version")
				p.Forget(v.Tenant, v.Name, rapid.SampledFrom([]int{0, v.Number, 99}).Draw(t, "number"))
				clear(pins)
			},
			"pin": func(t *rapid.T) {
				if len(pins) > 0 {
					t.Skip() // more pins than fit would wait for ever
				}
				i := pick(t)
				if err := p.Pin(targets[i]); err != nil {
					t.Fatal(err)
				}
				pins[i]++
			},
			"unpin": func(t *rapid.T) {
				for i := range pins {
					p.Unpin(targets[i])
				}
				clear(pins)
			},
		})
		// Liveness: with pins gone and each lease released once it is ready, all get ready.
		for _, tg := range targets {
			for range 3 {
				p.Unpin(tg)
			}
		}
		for range 100000 {
			p.Pump()
			for len(dev.pending) > 0 {
				dev.finish(0)
			}
			check()
			leases = slices.DeleteFunc(leases, func(h *held) bool {
				if isReady(h.l) {
					h.l.Release()
					return true
				}
				return false
			})
			if len(leases) == 0 {
				break
			}
			time.Sleep(10 * time.Microsecond)
		}
		if len(leases) > 0 {
			t.Fatalf("%s never got ready: %+v", leases[0].l.Key(), p.Stats())
		}
		for len(dev.pending) > 0 {
			dev.finish(0)
		}
		_ = p.Close()
		if s := p.Stats(); len(dev.blocks) > 0 || len(dev.slots) > 0 || s.HostBytes != 0 || s.SlotsUsed != 0 {
			t.Fatalf("left over: %d blocks, slots %v, %+v", len(dev.blocks), slices.Collect(maps.Keys(dev.slots)), s)
		}
	})
}

func TestPoolConcurrent(t *testing.T) {
	wake := make(chan struct{}, 1)
	p, blobs, dev := newPool(t, PoolConfig{Slots: 3, DeviceBytes: blobBytes(6), HostBytes: blobBytes(8), Wake: func() {
		select {
		case wake <- struct{}{}:
		default:
		}
	}})
	var targets []Target
	for i := range 8 {
		targets = append(targets, target(blobs.add(t, fmt.Sprintf("a%d", i), 1, 1+i%3)))
	}
	stop, done := make(chan struct{}), make(chan struct{})
	go func() { // the engine: it pumps only when woken or while copies are under way
		defer close(done)
		for {
			if p.Pump(); len(dev.pending) > 0 {
				dev.finish(0)
				continue
			}
			if p.Pump() {
				continue
			}
			select {
			case <-wake:
			case <-stop:
				return
			}
		}
	}()
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := range 60 {
				l, err := p.Acquire(targets[(g*7+i*i)%len(targets)])
				if err != nil {
					t.Error(err)
					return
				}
				select {
				case <-l.Ready():
					if l.Err() != nil {
						t.Error(l.Err())
					}
					_ = l.Slot()
				case <-time.After(30 * time.Second):
					t.Errorf("%s: not ready: %+v", l.Key(), p.Stats())
				}
				l.Release()
			}
		}()
	}
	wg.Wait()
	close(stop)
	<-done
}
