package adapters

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// The pool against a model: leases keep their slot and content, slots are unique, budgets hold, nothing leaks.
func TestPoolModel(t *testing.T) {
	blobs := &fakeBlobs{blobs: map[string][]byte{}}
	var versions []Version
	for i := range 6 {
		versions = append(versions, blobs.add(t, fmt.Sprintf("a%d", i), i+1, 1+i%3))
	}
	var encodings []*Encoding
	for _, v := range versions {
		w, _, err := loadVersion(context.Background(), blobs, v, small)
		if err != nil {
			t.Fatal(err)
		}
		b := encodingOf(w)
		if err := b.wait(); err != nil {
			t.Fatal(err)
		}
		encodings = append(encodings, b)
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
		if rapid.Bool().Draw(t, "impatient") {
			p.patience = 0
		}
		type held struct {
			l    *Lease
			slot int
		}
		var leases []*held
		pins := map[int]int{}
		type stage struct {
			s       staged
			version int
		}
		var stages []stage
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
			"stage": func(t *rapid.T) {
				i := rapid.IntRange(0, len(versions)-1).Draw(t, "version")
				stages = append(stages, stage{p.stage(encodings[i]), i})
			},
			"unstage": func(t *rapid.T) {
				if len(stages) == 0 {
					t.Skip()
				}
				i := rapid.IntRange(0, len(stages)-1).Draw(t, "stage")
				if s := stages[i]; rapid.Bool().Draw(t, "published") {
					s.s.publish(versions[s.version])
				} else {
					s.s.drop()
				}
				stages = slices.Delete(stages, i, i+1)
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
				n := rapid.SampledFrom([]int{0, v.Number, 99}).Draw(t, "number")
				p.Forget(v.Tenant, v.Name, n)
				for i, tg := range targets { // its pins end with it
					if n != 99 && slices.ContainsFunc(tg.Parts, func(part TargetPart) bool { return part.Version.Name == v.Name }) {
						delete(pins, i)
					}
				}
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
		for i := range pins {
			p.Unpin(targets[i])
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
