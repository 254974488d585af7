package infer

import (
	"errors"
	"testing"

	"bhive/adapters"
	"bhive/kernels"
	"bhive/kernels/devicetest"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// TestArena: runs never overlap, and what is given back can be taken again in one piece.
func TestArena(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.Int64Range(1, 64).Draw(t, "size") * alignBlocks
		a := newArena(size)
		var taken []span
		used := int64(0)
		for range rapid.IntRange(0, 60).Draw(t, "steps") {
			if len(taken) > 0 && rapid.Bool().Draw(t, "give") {
				i := rapid.IntRange(0, len(taken)-1).Draw(t, "which")
				a.give(taken[i].at, taken[i].n)
				used -= aligned(taken[i].n)
				taken = append(taken[:i], taken[i+1:]...)
				continue
			}
			n := rapid.Int64Range(1, 20*alignBlocks).Draw(t, "bytes")
			at, ok := a.take(n)
			if !ok {
				for _, s := range a.free {
					if s.n >= n {
						t.Fatalf("%d bytes are not found in %v", n, a.free)
					}
				}
				continue
			}
			for _, s := range taken {
				if at < s.at+aligned(s.n) && s.at < at+aligned(n) {
					t.Fatalf("[%d, +%d) overlaps [%d, +%d)", at, n, s.at, s.n)
				}
			}
			if at%alignBlocks != 0 || at+n > size {
				t.Fatalf("[%d, +%d) of %d", at, n, size)
			}
			taken = append(taken, span{at, n})
			used += aligned(n)
		}
		free := int64(0)
		for i, s := range a.free {
			free += s.n
			if i > 0 && a.free[i-1].at+a.free[i-1].n >= s.at {
				t.Fatalf("free runs touch: %v", a.free)
			}
		}
		if free+used != size {
			t.Fatalf("%d free and %d used of %d", free, used, size)
		}
		for _, s := range taken {
			a.give(s.at, s.n)
		}
		if diff := cmp.Diff([]span{{0, size}}, a.free, cmp.AllowUnexported(span{})); diff != "" {
			t.Fatal(diff)
		}
	})
}

// apart is a device whose memory is not the host's.
type apart struct{ kernels.Backend }

func (a apart) Info() kernels.Info {
	i := a.Backend.Info()
	i.CopyInPlace = false
	return i
}

// TestReservedAdapters: B's in reserved device and pinned memory, of which there is too little for all, give what they give elsewhere.
func TestReservedAdapters(t *testing.T) {
	h := newHive(t, kernels.F32)
	var rs []Request
	for i := range 8 {
		name := []string{"one", "two"}[i%2]
		rs = append(rs, Request{Tenant: "t", Prompt: readGolden(t, name+".greedy.json")[0].Prompt, Adapter: h.publish(t, name, h.weights[name]), Params: greedily(6)})
	}
	plain, _ := h.start(t, Config{MaxSeqs: 4, KVBlocks: 100}, 4)
	want := together(t, plain, rs)
	each := int64(h.weights["one"].Rank) * int64(h.model.Geometry.OutTotal()) * 4
	if devicetest.OnCPU() {
		h.be = apart{h.be}
	}
	h.device, h.host = 3*aligned(each), 2*aligned(each)
	e, pool := h.start(t, Config{MaxSeqs: 4, KVBlocks: 100, Overlap: true}, 4)
	for range 2 {
		if diff := cmp.Diff(withoutCached(want), withoutCached(together(t, e, rs))); diff != "" {
			t.Error(diff)
		}
	}
	if s := pool.Stats(); s.Evictions == 0 || s.DeviceBytes > h.device {
		t.Errorf("the device was never full: %+v", s)
	}
}

// TestReserveFails: memory that is not there is an error, and nothing stays taken.
func TestReserveFails(t *testing.T) {
	be := openDevice(t, kernels.F32)
	if devicetest.OnCPU() {
		be = apart{be}
	}
	d, err := NewDevice(be, be.NewStream(), 2)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	free := be.Info().MemoryFree
	if err := d.Reserve(1<<50, 0); !errors.Is(err, ErrNoMemory) {
		t.Error(err)
	}
	if after := be.Info().MemoryFree; after != free {
		t.Errorf("%d bytes are free, before %d", after, free)
	}
	if err := d.Reserve(4096, 0); err != nil {
		t.Fatal(err)
	}
	if d.AllocHost(1) != nil {
		t.Error("pinned memory out of nothing")
	}
	b, err := d.Alloc(4096)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Alloc(4); !errors.Is(err, adapters.ErrNoMemory) {
		t.Error(err)
	}
	d.Free(b)
	for {
		b, err = d.Alloc(8)
		if err == nil {
			break
		}
		if !errors.Is(err, adapters.ErrMemoryBusy) {
			t.Fatal(err)
		}
	}
	d.Free(b)
}
