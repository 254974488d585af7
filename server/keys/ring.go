package keys

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"bhive/adapters"
)

const (
	// Fresh is how long a ring goes by what it has read: so soon a key that was revoked through another server is refused here.
	Fresh = time.Second
	// askTime bounds the wait for a store that does not answer, while what it last said is known.
	askTime = time.Second
	// away is how long a store that failed is left alone.
	away = 5 * time.Second
	// linger is how long after that requests still go by what was known while the store is asked again: it may hang as before.
	linger = 2 * askTime
	// maxKeys is the most keys of a registry.
	maxKeys = 10000
	// valueKey is where a registry holds them.
	valueKey = "api-keys"
)

// Ring is the keys of a registry. Safe for concurrent use.
type Ring struct {
	store adapters.Store

	known  atomic.Pointer[table]
	asking sync.Mutex // one asks the store, the others wait for what it says
}

// table is what was read of the keys.
type table struct {
	keys []Key
	byID map[string]held
	rev  int64 // of the value; 0: there is none
	stay time.Time
	away bool // the store was, when it was asked last
}

// held is a key ready to be compared with.
type held struct {
	Key
	sum [sha256.Size]byte
}

// New makes a ring over a registry's store; it acquires nothing.
func New(s adapters.Store) *Ring { return &Ring{store: s} }

// Find is the key of a secret, or ErrUnknown.
func (r *Ring) Find(ctx context.Context, secret string) (Key, error) {
	t, err := r.table(ctx)
	if err != nil {
		return Key{}, err
	}
	sum := sha256.Sum256([]byte(secret))
	k, ok := t.byID[idOf(secret)] // without one, the comparison is with zeros
	if subtle.ConstantTimeCompare(sum[:], k.sum[:]) != 1 || !ok {
		return Key{}, ErrUnknown
	}
	return k.Key, nil
}

// Empty reports whether the registry has no keys at all.
func (r *Ring) Empty(ctx context.Context) (bool, error) {
	t, err := r.table(ctx)
	if err != nil {
		return false, err
	}
	return len(t.keys) == 0, nil
}

// List returns all keys, oldest first.
func (r *Ring) List(ctx context.Context) ([]Key, error) {
	t, err := r.read(ctx)
	if err != nil {
		return nil, err
	}
	return slices.Clone(t.keys), nil
}

// Create adds a key and returns it with its secret, which nothing can show again. The first key must be an administrator's
// (ErrLastAdmin); ErrFull; a *FieldError.
func (r *Ring) Create(ctx context.Context, tenant string, role Role, name string) (Key, string, error) {
	if err := check(tenant, role, name); err != nil {
		return Key{}, "", err
	}
	k, secret, err := newKey(tenant, role, name)
	if err != nil {
		return Key{}, "", err
	}
	err = r.change(ctx, func(all []Key) ([]Key, error) {
		if len(all) == 0 && role != Admin {
			return nil, fmt.Errorf("%w before all others", ErrLastAdmin)
		}
		if len(all) >= maxKeys {
			return nil, fmt.Errorf("%w: there are %d", ErrFull, len(all))
		}
		return append(all, k), nil
	})
	return k, secret, err
}

// Revoke removes a key: at once here, within Fresh on other servers. ErrUnknown; ErrLastAdmin, where other keys would be left without one, or
// where keepOne is set and it is the last key.
func (r *Ring) Revoke(ctx context.Context, id string, keepOne bool) error {
	return r.change(ctx, func(all []Key) ([]Key, error) {
		i := slices.IndexFunc(all, func(k Key) bool { return k.ID == id })
		if i < 0 {
			return nil, ErrUnknown
		}
		all = slices.Delete(all, i, i+1)
		if (len(all) > 0 || keepOne) && !slices.ContainsFunc(all, func(k Key) bool { return k.Role == Admin }) {
			return nil, fmt.Errorf("%w: this is the last one", ErrLastAdmin)
		}
		return all, nil
	})
}

// change replaces the keys by what f makes of them, again where somebody else was faster.
func (r *Ring) change(ctx context.Context, f func([]Key) ([]Key, error)) error {
	for {
		t, err := r.read(ctx)
		if err != nil {
			return err
		}
		all, err := f(slices.Clone(t.keys))
		if err != nil {
			return err
		}
		b, err := json.Marshal(all)
		if err != nil {
			return fmt.Errorf("writing the API keys: %w", err)
		}
		asked := time.Now()
		rev, err := r.store.PutValue(ctx, SystemTenant, valueKey, b, t.rev)
		if errors.Is(err, adapters.ErrConflict) || errors.Is(err, adapters.ErrExists) {
			continue
		}
		if err != nil {
			return fmt.Errorf("storing the API keys: %w", err)
		}
		// What was stored is known here without asking for it, which could fail: the change holds all the same.
		if t, err = newTable(b, rev, asked); err != nil {
			return err
		}
		r.asking.Lock()
		defer r.asking.Unlock()
		if known := r.known.Load(); known == nil || known.rev < rev {
			r.known.Store(t)
		}
		return nil
	}
}

// table is the keys as they were at most Fresh ago.
func (r *Ring) table(ctx context.Context) (*table, error) {
	old := r.known.Load()
	if old != nil && time.Now().Before(old.stay) {
		return old, nil
	}
	if old != nil && old.away && time.Since(old.stay) < linger {
		if r.asking.TryLock() {
			go func() {
				defer r.asking.Unlock()
				_, _ = r.refresh(ctx, old) // whoever comes after linger is told
			}()
		}
		return old, nil
	}
	r.asking.Lock()
	defer r.asking.Unlock()
	if old = r.known.Load(); old != nil && time.Now().Before(old.stay) {
		return old, nil
	}
	if old == nil {
		return r.load(ctx)
	}
	return r.refresh(ctx, old)
}

// refresh asks the store, for who holds asking. Where it is away, what was known is kept.
func (r *Ring) refresh(ctx context.Context, old *table) (*table, error) {
	// A client that goes away meanwhile must not look like a store that is.
	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), askTime)
	defer cancel()
	t, err := r.load(limited)
	if err == nil {
		return t, nil
	}
	if !errors.Is(err, adapters.ErrStoreUnavailable) && !errors.Is(err, context.DeadlineExceeded) {
		return nil, err
	}
	kept := *old
	kept.stay, kept.away = time.Now().Add(away), true
	r.known.Store(&kept)
	return &kept, nil
}

// read asks the store.
func (r *Ring) read(ctx context.Context) (*table, error) {
	r.asking.Lock()
	defer r.asking.Unlock()
	return r.load(ctx)
}

// load is read for who holds asking.
func (r *Ring) load(ctx context.Context) (*table, error) {
	asked := time.Now()
	b, rev, err := r.store.GetValue(ctx, SystemTenant, valueKey)
	if errors.Is(err, adapters.ErrNotFound) {
		b, rev, err = []byte("[]"), 0, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the API keys: %w", err)
	}
	t, err := newTable(b, rev, asked)
	if err != nil {
		return nil, err
	}
	r.known.Store(t)
	return t, nil
}

// newTable reads the keys of a value, as it was at a time.
func newTable(b []byte, rev int64, at time.Time) (*table, error) {
	t := &table{byID: map[string]held{}, rev: rev, stay: at.Add(Fresh)}
	if err := json.Unmarshal(b, &t.keys); err != nil {
		return nil, fmt.Errorf("%w: the API keys: %w", adapters.ErrCorrupt, err)
	}
	for _, k := range t.keys {
		sum, err := hex.DecodeString(k.SHA256)
		if err != nil || len(sum) != sha256.Size {
			return nil, fmt.Errorf("%w: the API key %s has no digest", adapters.ErrCorrupt, k.ID)
		}
		t.byID[k.ID] = held{k, [sha256.Size]byte(sum)}
	}
	return t, nil
}
