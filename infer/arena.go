package infer

import (
	"fmt"
	"slices"
	"sync"
	"unsafe"

	"bhive/kernels"
)

// arena hands out runs of the bytes [0, size), the first that fits.
type arena struct {
	free []span // by place; no two touch
}

// span is the bytes [at, at+n).
type span struct{ at, n int64 }

// alignBlocks is what runs of an arena are rounded up to, bytes.
const alignBlocks = 256

func aligned(n int64) int64 { return (n + alignBlocks - 1) / alignBlocks * alignBlocks }

// newArena makes an arena of a multiple of alignBlocks.
func newArena(size int64) arena {
	if size == 0 {
		return arena{}
	}
	return arena{free: []span{{0, size}}}
}

// take gives a run of at least n > 0 bytes, where there is one.
func (a *arena) take(n int64) (at int64, ok bool) {
	n = aligned(n)
	for i := range a.free {
		s := &a.free[i]
		if s.n < n {
			continue
		}
		at = s.at
		if s.at, s.n = s.at+n, s.n-n; s.n == 0 {
			a.free = slices.Delete(a.free, i, i+1)
		}
		return at, true
	}
	return 0, false
}

// give takes a run of n bytes back.
func (a *arena) give(at, n int64) {
	n = aligned(n)
	i, _ := slices.BinarySearchFunc(a.free, at, func(s span, at int64) int {
		if s.at < at {
			return -1
		}
		return 1
	})
	if i > 0 && a.free[i-1].at+a.free[i-1].n > at || i < len(a.free) && at+n > a.free[i].at {
		panic(fmt.Sprintf("infer: bytes %d to %d of an arena are given back twice", at, at+n))
	}
	a.free = slices.Insert(a.free, i, span{at, n})
	for j := min(i, len(a.free)-2); j >= max(i-1, 0); j-- { // join with its neighbours
		if s, next := a.free[j], a.free[j+1]; s.at+s.n == next.at {
			a.free[j].n += next.n
			a.free = slices.Delete(a.free, j+1, j+2)
		}
	}
}

// hostArena is pinned memory in slabs. Its methods may be called from any goroutine.
type hostArena struct {
	mem   kernels.Memory
	mu    sync.Mutex
	slabs []slab
}

type slab struct {
	memory []byte
	arena  arena
}

// hostSlab is the most bytes that are pinned at once.
const hostSlab = 1 << 30

// open pins memory. On an error nothing stays pinned.
func (h *hostArena) open(mem kernels.Memory, bytes int64) error {
	h.mem = mem
	for left := bytes / alignBlocks * alignBlocks; left > 0; {
		n := min(left, hostSlab)
		p, err := mem.Pinned(int(n))
		if err != nil {
			h.close()
			return err
		}
		h.slabs = append(h.slabs, slab{p, newArena(n)})
		left -= n
	}
	return nil
}

func (h *hostArena) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range h.slabs {
		h.mem.FreePinned(s.memory)
	}
	h.slabs = nil
}

// take is memory of n bytes, or nil where no slab has room.
func (h *hostArena) take(n int64) []byte {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := range h.slabs {
		if at, ok := h.slabs[i].arena.take(n); ok {
			return h.slabs[i].memory[at : at+n : at+n]
		}
	}
	return nil
}

// place finds the slab of memory that take gave; −1 for other memory.
func (h *hostArena) place(b []byte) (slab int, at int64) {
	p := uintptr(unsafe.Pointer(unsafe.SliceData(b)))
	for i, s := range h.slabs {
		if at := p - uintptr(unsafe.Pointer(unsafe.SliceData(s.memory))); at < uintptr(len(s.memory)) {
			return i, int64(at)
		}
	}
	return -1, 0
}

// room is how many runs of n bytes fit in bytes of slabs.
func (h *hostArena) room(bytes, n int64) int {
	return int(bytes/hostSlab*(hostSlab/aligned(n)) + bytes%hostSlab/aligned(n))
}

func (h *hostArena) owns(b []byte) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	i, _ := h.place(b)
	return i >= 0
}

func (h *hostArena) give(b []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	i, at := h.place(b)
	if i < 0 {
		panic("infer: memory is given back to an arena that it is not of")
	}
	h.slabs[i].arena.give(at, int64(len(b)))
}
