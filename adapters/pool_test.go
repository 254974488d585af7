package adapters

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

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

// A number that is given out again, since the store lost the version that had it, does not meet the old B, nor what a mix had of it.
func TestPoolNumberAgain(t *testing.T) {
	p, blobs, dev := newPool(t, PoolConfig{})
	lost := blobs.add(t, "a", 1, 2)
	again := blobs.add(t, "a", 2, 2)
	again.Number = 1
	for _, weight := range []float64{1, 0.5} {
		var b [2][]byte
		var content [2]string
		for i, v := range []Version{lost, again} {
			l := acquire(t, p, Target{[]TargetPart{{v, weight}}})
			pump(t, p, dev, l)
			b[i], content[i] = bytes.Clone(dev.slots[l.Slot()].data), l.Content()
			l.Release()
		}
		if bytes.Equal(b[0], b[1]) || content[0] == content[1] {
			t.Errorf("weight %v: the new version is served with the B of the lost one", weight)
		}
	}
	if n := len(p.Stats().Resident); n != 4 {
		t.Errorf("%d are resident", n)
	}
	p.Forget("t", "a", 1)
	p.Pump()
	if s := p.Stats(); len(s.Resident) != 0 || s.HostBytes != 0 {
		t.Errorf("forgotten: %+v", s)
	}
}

// TestPoolGivesWay: requests for one B that overlap without end do not keep another from the device for ever.
func TestPoolGivesWay(t *testing.T) {
	p, blobs, dev := newPool(t, PoolConfig{Slots: 1})
	p.patience = 0
	busy, other := blobs.add(t, "busy", 1, 2), blobs.add(t, "other", 2, 2)
	first := acquire(t, p, target(busy))
	pump(t, p, dev, first)
	waits := acquire(t, p, target(other))
	for queued := 0; queued == 0; time.Sleep(100 * time.Microsecond) {
		p.mu.Lock()
		queued = p.deviceQ.Len()
		p.mu.Unlock()
	}
	next := acquire(t, p, target(busy))
	if p.Pump(); isReady(next) || !isReady(first) || first.Slot() != 0 {
		t.Error("who comes later overtakes, or who was first is disturbed")
	}
	first.Release()
	pump(t, p, dev, waits)
	if waits.Err() != nil || isReady(next) {
		t.Errorf("the other has no turn: %v", waits.Err())
	}
	waits.Release()
	pump(t, p, dev, next)
	next.Release()
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

// A mix of which the weights are too large is the caller's mistake, and no damage of the adapter.
func TestPoolMixOverflows(t *testing.T) {
	p, blobs, dev := newPool(t, PoolConfig{})
	w := NewWeights(small, 1, 1)
	w.Data[0] = 1e35
	v := blobs.addWeights(t, "large", 1, w)
	for _, c := range []struct {
		parts []TargetPart
		want  error
	}{
		{[]TargetPart{{v, 1}}, nil},
		{[]TargetPart{{v, -2}}, nil},
		{[]TargetPart{{v, 1e6}}, ErrInvalidName},
		{[]TargetPart{{v, 1e6}, {v, -1e6}}, ErrInvalidName},
	} {
		l := acquire(t, p, Target{c.parts})
		pump(t, p, dev, l)
		if err := l.Err(); !errors.Is(err, c.want) || errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: want %v, got %v", l.Key(), c.want, err)
		}
		l.Release()
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

// What nobody waits for any more is not fetched before what somebody does.
func TestPoolFetchGivenUp(t *testing.T) {
	p, blobs, dev := newPool(t, PoolConfig{Fetchers: 1})
	blobs.gate = make(chan struct{})
	a, b, c := blobs.add(t, "a", 1, 2), blobs.add(t, "b", 2, 2), blobs.add(t, "c", 3, 2)
	delete(blobs.blobs, b.SHA256) // its fetch would fail
	la, lb, lc := acquire(t, p, target(a)), acquire(t, p, target(b)), acquire(t, p, target(c))
	lb.Release()
	close(blobs.gate)
	pump(t, p, dev, lc)
	pump(t, p, dev, la)
	if s := p.Stats(); s.Failures != 0 || la.Err() != nil || lc.Err() != nil {
		t.Errorf("%+v, %v, %v", s, la.Err(), lc.Err())
	}
	la.Release()
	lc.Release()
	lb = acquire(t, p, target(b)) // it can be asked for again
	if pump(t, p, dev, lb); !errors.Is(lb.Err(), ErrNotFound) {
		t.Errorf("asked for again: %v", lb.Err())
	}
	lb.Release()
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
