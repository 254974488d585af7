package grammar

import (
	"container/list"
	"context"
	"crypto/sha256"
	"encoding/json"
	"strings"
	"sync"
)

// Cache compiles grammars for one vocabulary and keeps those asked for last, by a hash of what they were made of. It is safe for concurrent use.
// Where several are to be compiled, tenants take turns; the error is the context's where that ends first.
type Cache struct {
	v    *Vocabulary
	most int

	compiling *turns // one at a time: the others' cores are for serving

	mu    sync.Mutex
	known map[[sha256.Size]byte]*list.Element
	order *list.List // of *entry, the one asked for last in front
	bytes int
}

// maxGrammarBytes is how much of grammars a cache keeps, what their texts remember aside: a usual one has some 100 KB, the largest about 100 MB.
const maxGrammarBytes = 256 << 20

type entry struct {
	key   [sha256.Size]byte
	bound *Bound
}

// NewCache makes a cache of at most so many grammars.
func NewCache(v *Vocabulary, most int) *Cache {
	return &Cache{v: v, most: max(most, 1), compiling: newTurns(), known: map[[sha256.Size]byte]*list.Element{}, order: list.New()}
}

// Schema is Compile, bound.
func (c *Cache) Schema(ctx context.Context, tenant string, schema json.RawMessage) (*Bound, error) {
	return c.get(ctx, tenant, "schema", string(schema), func() (*Grammar, error) { return Compile(schema) })
}

// Object is Object, bound.
func (c *Cache) Object(ctx context.Context, tenant string) (*Bound, error) {
	return c.get(ctx, tenant, "object", "", func() (*Grammar, error) { return Object(), nil })
}

// Regex is Regex, bound.
func (c *Cache) Regex(ctx context.Context, tenant, pattern string) (*Bound, error) {
	return c.get(ctx, tenant, "regex", pattern, func() (*Grammar, error) { return Regex(pattern) })
}

// Choice is Choice, bound.
func (c *Cache) Choice(ctx context.Context, tenant string, texts []string) (*Bound, error) {
	var b strings.Builder
	for _, t := range texts {
		b.WriteString(quoteJSON(t))
	}
	return c.get(ctx, tenant, "choice", b.String(), func() (*Grammar, error) { return Choice(texts) })
}

func (c *Cache) get(ctx context.Context, tenant, kind, source string, compile func() (*Grammar, error)) (*Bound, error) {
	key := sha256.Sum256([]byte(kind + ":" + source))
	if b := c.find(key); b != nil {
		return b, nil
	}
	end, err := c.compiling.take(ctx, tenant)
	if err != nil {
		return nil, err
	}
	defer end()
	if b := c.find(key); b != nil { // somebody else was faster
		return b, nil
	}
	g, err := compile()
	if err != nil {
		return nil, err
	}
	b := c.v.Bind(g)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.known[key] = c.order.PushFront(&entry{key, b})
	for c.bytes += g.size(); c.order.Len() > 1 && (c.order.Len() > c.most || c.bytes > maxGrammarBytes); {
		last := c.order.Remove(c.order.Back()).(*entry)
		delete(c.known, last.key)
		c.bytes -= last.bound.g.size()
	}
	return b, nil
}

func (c *Cache) find(key [sha256.Size]byte) *Bound {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.known[key]
	if !ok {
		return nil
	}
	c.order.MoveToFront(e)
	return e.Value.(*entry).bound
}
