package grammar

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"sync"
)

// Vocabulary is a model's tokens as texts, in a tree by their bytes. It is safe for concurrent use.
type Vocabulary struct {
	size  int
	words int // of a mask
	ends  []int
	long  int // bytes of the longest token

	// The tree's nodes in the order of their texts; node 0 is the root.
	label []byte
	depth []int32
	deep  []int32 // bytes of the longest text at or below a node
	tame  []bool  // a node and all below are of tame bytes alone
	skip  []int32 // the node behind a node's descendants
	first []int32 // [nodes+1]: where a node's tokens begin in ids
	ids   []int32

	texts [][]byte // by token, nil where it must not occur

	mu     sync.Mutex
	longs  map[int][]int32                 // masks of the tokens of more than so many bytes
	shared map[[sha256.Size]byte]*identity // of rules that call nothing, whatever grammar they are in
	store  *store
}

// NewVocabulary makes a vocabulary of the tokens 0 … size−1. text gives a token's bytes inside a text, nil for one that must not occur in
// it (a special token, say); ends are the tokens that end a text.
func NewVocabulary(size int, text func(token int) []byte, ends []int) *Vocabulary {
	ends = slices.DeleteFunc(slices.Clone(ends), func(id int) bool { return id < 0 })
	wide := size // an end may lie behind the last token
	for _, id := range ends {
		wide = max(wide, id+1)
	}
	v := &Vocabulary{size: size, words: (wide + 31) / 32, ends: ends, texts: make([][]byte, size),
		longs: map[int][]int32{}, shared: map[[sha256.Size]byte]*identity{}, store: newStore(maxMaskBytes)}
	type token struct {
		text []byte
		id   int32
	}
	var all []token
	for id := range size {
		if t := text(id); len(t) > 0 && !slices.Contains(ends, id) {
			all = append(all, token{t, int32(id)})
			v.texts[id] = t
			v.long = max(v.long, len(t))
		}
	}
	slices.SortStableFunc(all, func(a, b token) int { return bytes.Compare(a.text, b.text) })
	v.label, v.depth, v.skip, v.first = []byte{0}, []int32{0}, []int32{0}, []int32{0}
	open := []int32{0} // the nodes on the way to the last one
	var last []byte
	for _, t := range all {
		same := 0
		for same < len(last) && same < len(t.text) && last[same] == t.text[same] {
			same++
		}
		for len(open)-1 > same {
			v.skip[open[len(open)-1]] = int32(len(v.label))
			open = open[:len(open)-1]
		}
		for _, b := range t.text[same:] {
			n := int32(len(v.label))
			v.label, v.depth = append(v.label, b), append(v.depth, int32(len(open)))
			v.skip, v.first = append(v.skip, 0), append(v.first, int32(len(v.ids)))
			open = append(open, n)
		}
		v.ids = append(v.ids, t.id)
		last = t.text
	}
	for _, n := range open {
		v.skip[n] = int32(len(v.label))
	}
	v.first = append(v.first, int32(len(v.ids)))
	v.deep, v.tame = slices.Clone(v.depth), make([]bool, len(v.depth))
	for n := len(v.deep) - 1; n > 0; n-- { // descendants come behind
		v.tame[n] = tame(v.label[n])
		for m := int32(n) + 1; m < v.skip[n]; m = v.skip[m] {
			v.deep[n] = max(v.deep[n], v.deep[m])
			v.tame[n] = v.tame[n] && v.tame[m]
		}
	}
	return v
}

// longer is the mask of the tokens of more than n bytes.
func (v *Vocabulary) longer(n int) []int32 {
	v.mu.Lock()
	defer v.mu.Unlock()
	mask, ok := v.longs[n]
	if !ok {
		mask = make([]int32, v.words)
		for id, t := range v.texts {
			if len(t) > n {
				mask[id/32] |= 1 << (id % 32)
			}
		}
		v.longs[n] = mask
	}
	return mask
}

// identify finds what a rule has in common with equal rules, so that they share masks.
func (v *Vocabulary) identify(r *rule) *identity {
	if r.calls != nil || r.states > 4096 {
		return new(identity)
	}
	h := sha256.New()
	h.Write(r.class[:])
	b := make([]byte, 0, 4*len(r.next)+2*len(r.mark)+16)
	for _, n := range r.next {
		b = binary.LittleEndian.AppendUint32(b, uint32(n))
	}
	for _, m := range r.mark {
		b = append(b, byte(m))
	}
	for _, f := range r.final {
		if f {
			b = append(b, 1)
		} else {
			b = append(b, 0)
		}
	}
	b = binary.LittleEndian.AppendUint32(b, uint32(r.min))
	b = binary.LittleEndian.AppendUint32(b, uint32(r.max))
	b = binary.LittleEndian.AppendUint32(b, uint32(r.width))
	h.Write(b)
	key := [sha256.Size]byte(h.Sum(nil))
	v.mu.Lock()
	defer v.mu.Unlock()
	m, ok := v.shared[key]
	if !ok {
		if len(v.shared) >= maxShared {
			clear(v.shared)
		}
		m = new(identity)
		v.shared[key] = m
	}
	return m
}

// maxShared is how many rules a vocabulary knows for grammars to come.
const maxShared = 1024

func (v *Vocabulary) text(token int) ([]byte, bool) {
	if token < 0 || token >= v.size || v.texts[token] == nil {
		return nil, false
	}
	return v.texts[token], true
}
