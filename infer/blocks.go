package infer

import (
	"container/list"
	"fmt"
)

// blocks counts who uses the KV blocks of a device and remembers what the idle ones hold. A block is in one of three states:
//
//	free    nobody uses it and nothing is known of its content
//	held    refs > 0 sequences use it; with a key it can be found by others too
//	cached  refs = 0 and it has a key: found by others until it is evicted, least recently used first
//
// A block without a key is written by its one holder; a block with a key is full and never written again, also where the key is taken away.
type blocks struct {
	refs   []int32
	keys   []blockKey // zero: none
	free   []int32
	idle   *list.List      // of int32: cached blocks, least recently used first
	places []*list.Element // in idle
	found  map[blockKey]int32
}

func newBlocks(n int) *blocks {
	b := &blocks{refs: make([]int32, n), keys: make([]blockKey, n), idle: list.New(), places: make([]*list.Element, n),
		found: make(map[blockKey]int32)}
	for i := n - 1; i >= 0; i-- {
		b.free = append(b.free, int32(i))
	}
	return b
}

// available is the number of blocks that take can give.
func (b *blocks) available() int { return len(b.free) + b.idle.Len() }

// used is the number of blocks that sequences hold.
func (b *blocks) used() int { return len(b.refs) - b.available() }

// take gives a block to one holder, evicting the least recently used cached one where none is free.
func (b *blocks) take() (int32, bool) {
	if n := len(b.free); n > 0 {
		id := b.free[n-1]
		b.free = b.free[:n-1]
		b.refs[id] = 1
		return id, true
	}
	front := b.idle.Front()
	if front == nil {
		return 0, false
	}
	id := front.Value.(int32)
	b.leaveIdle(id)
	b.forget(id)
	b.refs[id] = 1
	return id, true
}

// share adds a holder to the block with that key.
func (b *blocks) share(k blockKey) (int32, bool) {
	id, ok := b.found[k]
	if !ok {
		return 0, false
	}
	if b.refs[id] == 0 {
		b.leaveIdle(id)
	}
	b.refs[id]++
	return id, true
}

// isIdle reports whether the key's block would be taken out of the cache by share, and so out of what is available.
func (b *blocks) isIdle(k blockKey) (idle, ok bool) {
	id, ok := b.found[k]
	return ok && b.refs[id] == 0, ok
}

// release takes a holder away.
func (b *blocks) release(id int32) {
	if b.refs[id] <= 0 {
		panic(fmt.Sprintf("infer: KV block %d is released by nobody", id))
	}
	if b.refs[id]--; b.refs[id] > 0 {
		return
	}
	if b.keys[id] == (blockKey{}) {
		b.free = append(b.free, id)
		return
	}
	b.places[id] = b.idle.PushBack(id)
}

// publish gives a full block its key, so that others find it. Where another block has the same content already, that one stays the
// one that is found.
func (b *blocks) publish(id int32, k blockKey) {
	if b.refs[id] <= 0 {
		panic(fmt.Sprintf("infer: KV block %d is published by nobody", id))
	}
	if _, ok := b.found[k]; ok || b.keys[id] != (blockKey{}) {
		return
	}
	b.keys[id], b.found[k] = k, id
}

// unpublish takes a held block's key away: nobody else finds it, and with its last holder its content is gone.
func (b *blocks) unpublish(id int32) {
	if b.refs[id] <= 0 {
		panic(fmt.Sprintf("infer: KV block %d is unpublished by nobody", id))
	}
	if b.keys[id] != (blockKey{}) {
		b.forget(id)
	}
}

func (b *blocks) leaveIdle(id int32) {
	b.idle.Remove(b.places[id])
	b.places[id] = nil
}

func (b *blocks) forget(id int32) {
	delete(b.found, b.keys[id])
	b.keys[id] = blockKey{}
}
