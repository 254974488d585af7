package adapters

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"
)

// Target is a resolved reference: immutable versions and their weights. The zero Target is the base model.
type Target struct {
	Parts []TargetPart
}

// TargetPart is one version of a target.
type TargetPart struct {
	Version Version
	Weight  float64
}

// Base says whether the target is the base model.
func (t Target) Base() bool { return len(t.Parts) == 0 }

// Key names the target: "tenant/name@7", a mix "tenant/a@7:0.7+tenant/b@3:0.3", the base "".
func (t Target) Key() string {
	parts := make([]string, len(t.Parts))
	for i, p := range t.Parts {
		parts[i] = p.Version.Ref()
		if p.Weight != 1 {
			parts[i] += ":" + weightString(p.Weight)
		}
	}
	return strings.Join(parts, "+")
}

// content identifies the target's values for ever. Where a store has lost versions that it had acknowledged, their numbers are given out again.
func (t Target) content() string {
	s := t.Key()
	for _, p := range t.Parts {
		s += "\x00" + p.Version.SHA256
	}
	return s
}

// Registry is a Store that remembers versions and live pointers and follows the change feed, so that a resolved
// name stays resolvable while the store is away. Safe for concurrent use.
type Registry struct {
	Store
	onChange func(Change)
	pool     *Pool // may be nil

	mu         sync.Mutex
	following  bool      // Run sees all changes, so what is remembered is true
	away       time.Time // until then the store is not asked for what is remembered: it failed just now
	generation uint64
	names      map[nameKey]*remembered
}

type nameKey struct{ tenant, name string }

type remembered struct {
	live     int // 0: not known
	versions map[int]Version
}

// NewRegistry makes a registry over a store. onChange, where not nil, is called by Run for every change, after the
// registry has taken notice of it.
func NewRegistry(s Store, onChange func(Change)) *Registry {
	return &Registry{Store: s, onChange: onChange, names: map[nameKey]*remembered{}}
}

// StageIn has every B that Save publishes put into the pool's host memory while it is being made durable, so that the first request for it
// waits for no load. It is called before any other method.
func (r *Registry) StageIn(p *Pool) { r.pool = p }

const (
	retryFeed  = time.Second
	leaveAlone = 2 * time.Second // how long a store that failed is not asked for what is remembered: a request for a loaded adapter must not wait for it each time
)

// Run follows the change feed until ctx ends, whatever the store's outages. Without it every Resolve asks the store.
func (r *Registry) Run(ctx context.Context) error {
	defer r.setFollowing(false)
	cursor, known, following := "", false, false
	for ctx.Err() == nil {
		var changes []Change
		var end string
		var err error
		if !following {
			if end, err = r.Store.Cursor(ctx); err == nil {
				if !known {
					cursor, known = end, true
					r.forgetAll()
				}
				following = end == cursor // otherwise Watch tells at once what was missed
				r.setFollowing(following)
			}
		}
		if err == nil {
			changes, err = r.Store.Watch(ctx, cursor)
		}
		if err == nil {
			for _, c := range changes {
				cursor = c.Cursor
				r.notice(ctx, c)
				if r.onChange != nil {
					r.onChange(c)
				}
			}
			following = true
			r.setFollowing(true)
		}
		if err != nil {
			following = false
			r.setFollowing(false)
			if errors.Is(err, ErrStoreUnavailable) {
				r.mu.Lock()
				r.away = time.Now().Add(leaveAlone)
				r.mu.Unlock()
			}
			known = known && !errors.Is(err, ErrCursorLost)
			if errors.Is(err, ErrClosed) {
				return err
			}
			select {
			case <-ctx.Done():
			case <-time.After(retryFeed):
			}
		}
	}
	return ctx.Err()
}

func (r *Registry) setFollowing(on bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.following = on
}

func (r *Registry) forgetAll() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.generation++
	clear(r.names)
}

// notice brings what is remembered of a name up to date. Names never asked for stay unknown.
func (r *Registry) notice(ctx context.Context, c Change) {
	key := nameKey{c.Tenant, c.Name}
	r.mu.Lock()
	r.generation++
	n := r.names[key]
	if n != nil {
		switch c.Kind {
		case Published, LiveMoved:
			n.live = 0
		case VersionDeleted:
			delete(n.versions, c.Number)
		case AdapterDeleted:
			delete(r.names, key)
		}
	}
	r.mu.Unlock()
	if n != nil && (c.Kind == Published || c.Kind == LiveMoved) {
		_, _ = r.version(ctx, c.Tenant, c.Name, 0) // remembered; a failure is met again by whoever asks
	}
}

// version is Get through the memory.
func (r *Registry) version(ctx context.Context, tenant, name string, number int) (Version, error) {
	key := nameKey{tenant, name}
	r.mu.Lock()
	have, ok := r.recall(key, number)
	known, generation := r.following || time.Now().Before(r.away), r.generation
	r.mu.Unlock()
	if ok && known {
		return have, nil
	}
	v, err := r.Store.Get(ctx, tenant, name, number)
	r.mu.Lock()
	defer r.mu.Unlock()
	if errors.Is(err, ErrStoreUnavailable) {
		r.away = time.Now().Add(leaveAlone)
	}
	switch {
	case err == nil:
		if r.generation == generation {
			n := r.names[key]
			if n == nil {
				n = &remembered{versions: map[int]Version{}}
				r.names[key] = n
			}
			n.versions[v.Number] = v
			if number == 0 {
				n.live = v.Number
			}
		}
		return v, nil
	case ok && errors.Is(err, ErrStoreUnavailable):
		return have, nil
	}
	return v, err
}

func (r *Registry) recall(key nameKey, number int) (Version, bool) {
	n := r.names[key]
	if n == nil {
		return Version{}, false
	}
	if number == 0 {
		number = n.live
	}
	v, ok := n.versions[number]
	return v, ok
}

// Resolve turns a reference into a target for the tenant. Parts that name another tenant need admin (ErrNotFound).
// A mix must be of one base and rows of one basis (ErrBaseMismatch); the pool checks them against the basis in use.
func (r *Registry) Resolve(ctx context.Context, tenant string, ref Ref, admin bool) (Target, error) {
	tenant = Owner(tenant)
	var t Target
	for _, p := range ref.Parts {
		owner := tenant
		if p.Tenant != "" && p.Tenant != tenant {
			if owner = p.Tenant; !admin {
				return Target{}, fmt.Errorf("resolving %s: %w", ref, ErrNotFound)
			}
		}
		v, err := r.version(ctx, owner, p.Name, p.Number)
		if err != nil {
			return Target{}, fmt.Errorf("resolving %s: %w", ref, err)
		}
		if len(t.Parts) > 0 && v.BaseHash != t.Parts[0].Version.BaseHash {
			return Target{}, fmt.Errorf("resolving %s: %w: %s and %s", ref, ErrBaseMismatch, t.Parts[0].Version.Ref(), v.Ref())
		}
		if r.pool != nil {
			r.pool.prepare(v)
		}
		t.Parts = append(t.Parts, TargetPart{v, p.Weight})
	}
	return t, nil
}

// forget makes the next Resolve of a name ask the store: a caller sees its own writes at once.
func (r *Registry) forget(tenant, name string) {
	tenant = Owner(tenant)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.generation++
	delete(r.names, nameKey{tenant, name})
}

// Publish is Store.Publish.
func (r *Registry) Publish(ctx context.Context, tenant string, v Version, o PublishOptions) (Version, error) {
	v, err := r.Store.Publish(ctx, tenant, v, o)
	if err == nil {
		r.forget(tenant, v.Name)
	}
	return v, err
}

// SetLive is Store.SetLive.
func (r *Registry) SetLive(ctx context.Context, tenant, name string, number int) (Version, error) {
	v, err := r.Store.SetLive(ctx, tenant, name, number)
	if err == nil {
		r.forget(tenant, name)
	}
	return v, err
}

// Delete is Store.Delete.
func (r *Registry) Delete(ctx context.Context, tenant, name string, number int) error {
	err := r.Store.Delete(ctx, tenant, name, number)
	if err == nil {
		r.forget(tenant, name)
	}
	return err
}

// Save is a whole publication: it encodes w, stores the blob and publishes it under v.Name, with the hash that the store computed of what it
// wrote. Of v the caller gives Name, BasisDigest, BaseHash, Parent and Training; the rest comes from w and the store.
func (r *Registry) Save(ctx context.Context, tenant string, v Version, w *Weights, o PublishOptions) (Version, error) {
	return r.SaveEncoding(ctx, tenant, v, encodingOf(w), o)
}

// SaveEncoding is Save of a B that may still be on its way: what has come of it is stored meanwhile. It returns when all has come, or b has failed.
func (r *Registry) SaveEncoding(ctx context.Context, tenant string, v Version, b *Encoding, o PublishOptions) (Version, error) {
	var s staged
	packed := make(chan struct{})
	go func() {
		defer close(packed)
		if err := b.wait(); err == nil && r.pool != nil {
			s = r.pool.stage(b)
		}
	}()
	v.Rank, v.Alpha, v.Scaling = b.of.Rank, b.of.Alpha, b.of.Scaling
	saved, err := r.putAndPublish(ctx, tenant, v, b, o)
	if errors.Is(err, errOtherwise) { // all has come meanwhile
		saved, err = r.putAndPublish(ctx, tenant, v, b, o)
	}
	<-packed
	if err != nil {
		s.drop()
		return saved, err
	}
	s.publish(saved)
	r.forget(tenant, v.Name)
	return saved, nil
}

func (r *Registry) putAndPublish(ctx context.Context, tenant string, v Version, b *Encoding, o PublishOptions) (Version, error) {
	blob, err := b.reader(v.BasisDigest, v.BaseHash)
	if err != nil {
		return Version{}, fmt.Errorf("saving %s: %w", v.Name, err)
	}
	if p, ok := r.Store.(BlobPublisher); ok {
		return p.PublishBlob(ctx, tenant, blob, v, o)
	}
	info, err := r.Store.PutBlob(ctx, tenant, blob)
	if err != nil {
		return Version{}, fmt.Errorf("saving %s: %w", v.Name, err)
	}
	v.SHA256, v.Bytes = info.SHA256, info.Bytes
	return r.Store.Publish(ctx, tenant, v, o)
}

// Load reads a version's B back from the store and verifies its hash.
func (r *Registry) Load(ctx context.Context, v Version, g Geometry) (*Weights, Meta, error) {
	return loadVersion(ctx, r.Store, v, g)
}
