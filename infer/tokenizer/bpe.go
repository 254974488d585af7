package tokenizer

import (
	"container/heap"
	"fmt"
	"unicode/utf8"
)

// bpe merges the symbols of a word, lowest rank first, leftmost first among equals.
type bpe struct {
	vocab  map[string]int32
	tokens []string // by id; has tells which ids exist
	has    []bool
	merges map[uint64]merge // by pair of ids, see pairKey

	unk          int32 // -1: none, unknown characters vanish
	fuseUnk      bool
	byteFallback bool
	byteToken    [256]int32 // id of <0xNN>, -1 where absent
	ignoreMerges bool
	prefix       string // of every symbol but a word's first
	suffix       string // of a word's last symbol

	bytes      bool             // words come as bytes, not yet in GPT-2's alphabet
	byteSymbol [256]int32       // id of the byte's character, -1 where absent
	raw        map[string]int32 // vocabulary by bytes (only with ignoreMerges)

	cache *wordCache
}

type merge struct {
	rank uint32
	id   int32
}

func pairKey(a, b int32) uint64 { return uint64(uint32(a))<<32 | uint64(uint32(b)) }

func newBPE(vocab map[string]int32) (*bpe, error) {
	m := &bpe{vocab: vocab, unk: -1, merges: map[uint64]merge{}, cache: newWordCache()}
	top := int32(-1)
	for token, id := range vocab {
		if id < 0 || int(id) > 2*len(vocab)+1<<16 {
			return nil, fmt.Errorf("%w: token %q has id %d of %d tokens", ErrFormat, token, id, len(vocab))
		}
		top = max(top, id)
	}
	m.tokens, m.has = make([]string, top+1), make([]bool, top+1)
	for token, id := range vocab {
		if m.has[id] && m.tokens[id] < token {
			continue // two tokens of one id: which is shown must not depend on the map's order
		}
		m.tokens[id], m.has[id] = token, true
	}
	for b := range 256 {
		m.byteToken[b] = m.lookup(fmt.Sprintf("<0x%02X>", b))
		m.byteSymbol[b] = m.lookup(string(alphabet[b]))
	}
	return m, nil
}

func (m *bpe) lookup(token string) int32 {
	if id, ok := m.vocab[token]; ok {
		return id
	}
	return -1
}

// takeBytes makes words be byte strings from now on. It answers false, and changes nothing, where that would not be equivalent to
// words in GPT-2's alphabet.
func (m *bpe) takeBytes() bool {
	if m.byteFallback || m.prefix != "" || m.suffix != "" {
		return false
	}
	m.bytes = true
	if m.ignoreMerges {
		m.raw = make(map[string]int32, len(m.vocab))
		for token, id := range m.vocab {
			if b, ok := appendAlphabet(nil, token); ok {
				m.raw[string(b)] = id
			}
		}
	}
	return true
}

// encode appends the ids of one word.
func (m *bpe) encode(word string, ids []int) []int {
	if word == "" {
		return ids
	}
	if len(word) > cacheWord {
		return appendIDs(ids, m.split(word, nil))
	}
	at := m.cache.place(word)
	if e := at.Load(); e != nil && e.word == word {
		return appendIDs(ids, e.ids)
	}
	var buf [cacheWord]int32
	got := m.split(word, buf[:0])
	m.cache.put(at, word, got)
	return appendIDs(ids, got)
}

func appendIDs(ids []int, more []int32) []int {
	for _, id := range more {
		ids = append(ids, int(id))
	}
	return ids
}

func (m *bpe) split(word string, buf []int32) []int32 {
	if m.ignoreMerges {
		whole := m.vocab
		if m.bytes {
			whole = m.raw
		}
		if id, ok := whole[word]; ok {
			return append(buf, id)
		}
	}
	if m.bytes {
		buf = m.byteSymbols(word, buf)
	} else {
		buf = m.charSymbols(word, buf)
	}
	if len(buf) <= 32 {
		return m.mergeShort(buf)
	}
	return m.mergeLong(buf)
}

// unknowns gathers characters that are not in the vocabulary.
type unknowns struct {
	m       *bpe
	pending bool
}

func (u *unknowns) flush(out []int32) []int32 {
	if u.pending {
		out, u.pending = append(out, u.m.unk), false
	}
	return out
}

func (u *unknowns) add(out []int32) []int32 {
	if u.m.unk < 0 {
		return out
	}
	if !u.m.fuseUnk {
		out = u.flush(out)
	}
	u.pending = true
	return out
}

func (m *bpe) byteSymbols(word string, out []int32) []int32 {
	u := unknowns{m: m}
	for i := range len(word) {
		if id := m.byteSymbol[word[i]]; id >= 0 {
			out = append(u.flush(out), id)
		} else {
			out = u.add(out)
		}
	}
	return u.flush(out)
}

func (m *bpe) charSymbols(word string, out []int32) []int32 {
	u := unknowns{m: m}
	for i := 0; i < len(word); {
		_, n := utf8.DecodeRuneInString(word[i:])
		s := word[i : i+n]
		if i > 0 && m.prefix != "" {
			s = m.prefix + s
		}
		if i+n == len(word) && m.suffix != "" {
			s += m.suffix
		}
		i += n
		if id, ok := m.vocab[s]; ok {
			out = append(u.flush(out), id)
			continue
		}
		if m.byteFallback {
			mark := len(out)
			all := true
			for k := range len(s) {
				id := m.byteToken[s[k]]
				if all = all && id >= 0; !all {
					break
				}
				out = append(out, id)
			}
			if all {
				continue
			}
			out = out[:mark]
		}
		out = u.add(out)
	}
	return u.flush(out)
}

// mergeShort merges in place by looking for the lowest rank again and again.
func (m *bpe) mergeShort(ids []int32) []int32 {
	const none = ^uint32(0)
	var known [32]merge // merge of ids[i] and ids[i+1]
	look := func(i int) merge {
		if i < 0 || i+1 >= len(ids) {
			return merge{rank: none}
		}
		if g, ok := m.merges[pairKey(ids[i], ids[i+1])]; ok {
			return g
		}
		return merge{rank: none}
	}
	for i := range ids {
		known[i] = look(i)
	}
	for {
		best := 0
		for i := 1; i+1 < len(ids); i++ {
			if known[i].rank < known[best].rank {
				best = i
			}
		}
		if len(ids) < 2 || known[best].rank == none {
			return ids
		}
		ids[best] = known[best].id
		copy(ids[best+1:], ids[best+2:])
		copy(known[best+1:], known[best+2:len(ids)])
		ids = ids[:len(ids)-1]
		known[best] = look(best)
		if best > 0 {
			known[best-1] = look(best - 1)
		}
	}
}

// mergeQueue holds rank<<32 | position.
type mergeQueue []uint64

func (q mergeQueue) Len() int           { return len(q) }
func (q mergeQueue) Less(i, j int) bool { return q[i] < q[j] }
func (q mergeQueue) Swap(i, j int)      { q[i], q[j] = q[j], q[i] }
func (q *mergeQueue) Push(x any)        { *q = append(*q, x.(uint64)) }
func (q *mergeQueue) Pop() any {
	old := *q
	x := old[len(old)-1]
	*q = old[:len(old)-1]
	return x
}

// mergeLong merges with a queue: O(n log n).
func (m *bpe) mergeLong(ids []int32) []int32 {
	n := len(ids)
	next, prev := make([]int32, n), make([]int32, n)
	queue := make(mergeQueue, 0, n)
	for i := range ids {
		next[i], prev[i] = int32(i+1), int32(i-1)
		if i+1 < n {
			if g, ok := m.merges[pairKey(ids[i], ids[i+1])]; ok {
				queue = append(queue, uint64(g.rank)<<32|uint64(i))
			}
		}
	}
	heap.Init(&queue)
	push := func(i, j int32) {
		if g, ok := m.merges[pairKey(ids[i], ids[j])]; ok {
			heap.Push(&queue, uint64(g.rank)<<32|uint64(uint32(i)))
		}
	}
	for len(queue) > 0 {
		top := heap.Pop(&queue).(uint64)
		i := int32(uint32(top))
		j := next[i]
		if ids[i] < 0 || int(j) >= n {
			continue
		}
		g, ok := m.merges[pairKey(ids[i], ids[j])]
		if !ok || uint64(g.rank) != top>>32 {
			continue // the pair that was queued is gone
		}
		ids[i], ids[j] = g.id, -1
		next[i] = next[j]
		if int(next[i]) < n {
			prev[next[i]] = i
			push(i, next[i])
		}
		if prev[i] >= 0 {
			push(prev[i], i)
		}
	}
	out := ids[:0]
	for _, id := range ids {
		if id >= 0 {
			out = append(out, id)
		}
	}
	return out
}
