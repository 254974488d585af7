package infer

import (
	"crypto/sha256"
	"encoding/binary"
)

// blockKey identifies the content of a full KV block: a SHA-256 over the key of the block before it and its own tokens. The chain
// begins with the adapter's versions and the tenant: an adapter changes K and V, and a tenant must not learn from timing what another
// one asked. It is a cryptographic hash because tokens come from outside and a collision would show one prompt's K and V to another.
type blockKey [sha256.Size]byte

// rootKey begins the chain of an adapter (its lease's content) and a tenant.
func rootKey(adapter, tenant string) blockKey {
	b := binary.AppendUvarint(nil, uint64(len(adapter)))
	b = append(b, adapter...)
	return sha256.Sum256(append(b, tenant...))
}

// next is the key of a block that follows one with key k.
func (k blockKey) next(tokens []int32) blockKey {
	buf := make([]byte, 0, 512)
	buf = append(buf, k[:]...)
	for _, t := range tokens {
		buf = binary.LittleEndian.AppendUint32(buf, uint32(t))
	}
	return sha256.Sum256(buf)
}

// chain extends keys, those of the first len(keys) blocks, to all full blocks of tokens.
func chain(root blockKey, keys []blockKey, tokens []int32, blockTokens int) []blockKey {
	for n := len(keys); (n+1)*blockTokens <= len(tokens); n++ {
		prev := root
		if n > 0 {
			prev = keys[n-1]
		}
		keys = append(keys, prev.next(tokens[n*blockTokens:(n+1)*blockTokens]))
	}
	return keys
}

// match takes hold of the longest run of blocks that are found under keys.
func (b *blocks) match(keys []blockKey) []int32 {
	var held []int32
	for _, k := range keys {
		id, ok := b.share(k)
		if !ok {
			break
		}
		held = append(held, id)
	}
	return held
}

// prefix counts without taking hold: blocks found under keys, and how many of those are idle.
func (b *blocks) prefix(keys []blockKey) (found, idle int) {
	for _, k := range keys {
		is, ok := b.isIdle(k)
		if !ok {
			break
		}
		found++
		if is {
			idle++
		}
	}
	return found, idle
}
