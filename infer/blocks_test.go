package infer

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// TestBlocksModel holds blocks against a plain model: who holds what, and which content was published where.
func TestBlocksModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 12).Draw(t, "blocks")
		b := newBlocks(n)
		var held []int32                // with repetition
		content := map[int32]blockKey{} // published
		keyOf := func(i int) blockKey { return blockKey{byte(i + 1)} }
		distinct := func() int {
			s := slices.Clone(held)
			slices.Sort(s)
			return len(slices.Compact(s))
		}
		t.Repeat(map[string]func(*rapid.T){
			"take": func(t *rapid.T) {
				id, ok := b.take()
				if ok != (distinct() < n) {
					t.Fatalf("take says %v with %d of %d held", ok, distinct(), n)
				}
				if !ok {
					return
				}
				if slices.Contains(held, id) {
					t.Fatalf("block %d is given out twice", id)
				}
				delete(content, id)
				held = append(held, id)
			},
			"share": func(t *rapid.T) {
				k := keyOf(rapid.IntRange(0, 5).Draw(t, "key"))
				id, ok := b.share(k)
				if !ok {
					for id, c := range content {
						if c == k {
							t.Fatalf("block %d holds the key and is not found", id)
						}
					}
					return
				}
				if content[id] != k {
					t.Fatalf("block %d is found under a key it does not hold", id)
				}
				held = append(held, id)
			},
			"publish": func(t *rapid.T) {
				if len(held) == 0 {
					t.Skip("nothing is held")
				}
				id := rapid.SampledFrom(held).Draw(t, "block")
				k := keyOf(rapid.IntRange(0, 5).Draw(t, "key"))
				b.publish(id, k)
				taken := false
				for _, c := range content {
					taken = taken || c == k
				}
				if _, has := content[id]; !has && !taken {
					content[id] = k
				}
			},
			"unpublish": func(t *rapid.T) {
				if len(held) == 0 {
					t.Skip("nothing is held")
				}
				id := rapid.SampledFrom(held).Draw(t, "block")
				b.unpublish(id)
				delete(content, id)
			},
			"release": func(t *rapid.T) {
				if len(held) == 0 {
					t.Skip("nothing is held")
				}
				i := rapid.IntRange(0, len(held)-1).Draw(t, "holder")
				b.release(held[i])
				held = slices.Delete(held, i, i+1)
			},
			"": func(t *rapid.T) {
				if b.used() != distinct() || b.available() != n-distinct() {
					t.Fatalf("used %d, available %d; %d of %d are held", b.used(), b.available(), distinct(), n)
				}
				refs := make([]int32, n)
				for _, id := range held {
					refs[id]++
				}
				if !slices.Equal(refs, b.refs) {
					t.Fatalf("reference counts %v, want %v", b.refs, refs)
				}
				if len(b.found) != len(content) {
					t.Fatalf("%d keys are found, want %d", len(b.found), len(content))
				}
			},
		})
	})
}

func TestEvictionIsLeastRecentlyUsed(t *testing.T) {
	b := newBlocks(3)
	var ids []int32
	for i := range 3 {
		id, _ := b.take()
		b.publish(id, blockKey{byte(i + 1)})
		ids = append(ids, id)
	}
	for _, i := range []int{1, 0, 2} {
		b.release(ids[i])
	}
	b.share(blockKey{2}) // block 1 is used again,
	b.release(ids[1])    // so the order is 0, 2, 1
	for _, want := range []int32{ids[0], ids[2], ids[1]} {
		if got, _ := b.take(); got != want {
			t.Fatalf("evicted %d, want %d", got, want)
		}
	}
}

// TestKeys: equal keys need equal adapter, tenant and tokens up to the block's end.
func TestKeys(t *testing.T) {
	base := chain(rootKey("a", "t"), nil, []int32{1, 2, 3, 4, 5}, 2)
	if len(base) != 2 {
		t.Fatalf("%d full blocks in 5 tokens of 2", len(base))
	}
	for name, other := range map[string][]blockKey{
		"adapter":         chain(rootKey("b", "t"), nil, []int32{1, 2, 3, 4}, 2),
		"tenant":          chain(rootKey("a", "u"), nil, []int32{1, 2, 3, 4}, 2),
		"boundary":        chain(rootKey("at", ""), nil, []int32{1, 2, 3, 4}, 2),
		"first block":     chain(rootKey("a", "t"), nil, []int32{9, 2, 3, 4}, 2),
		"blocks swapped":  chain(rootKey("a", "t"), nil, []int32{3, 4, 1, 2}, 2),
		"size of a block": chain(rootKey("a", "t"), nil, []int32{1, 2, 3, 4}, 4),
	} {
		for i, k := range other {
			if slices.Contains(base, k) {
				t.Errorf("another %s: block %d has an equal key", name, i)
			}
		}
	}
	if grown := chain(rootKey("a", "t"), base[:1:1], []int32{1, 2, 3, 4, 5, 6}, 2); !slices.Equal(grown[:2], base) || len(grown) != 3 {
		t.Error("a chain that grows is not the chain made at once")
	}
}
