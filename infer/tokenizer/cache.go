package tokenizer

import (
	"hash/maphash"
	"strings"
	"sync/atomic"
)

const (
	cacheEntries = 1 << 13 // at most this many words are remembered
	cacheWord    = 64      // bytes of the longest word worth remembering
)

// wordCache remembers the ids of recent words. Each word has one place; a newcomer takes it.
type wordCache struct {
	seed    maphash.Seed
	entries [cacheEntries]atomic.Pointer[cachedWord]
}

type cachedWord struct {
	word string
	ids  []int32
}

func newWordCache() *wordCache { return &wordCache{seed: maphash.MakeSeed()} }

func (c *wordCache) place(word string) *atomic.Pointer[cachedWord] {
	return &c.entries[maphash.String(c.seed, word)&(cacheEntries-1)]
}

func (c *wordCache) put(at *atomic.Pointer[cachedWord], word string, ids []int32) {
	at.Store(&cachedWord{strings.Clone(word), append([]int32(nil), ids...)})
}
