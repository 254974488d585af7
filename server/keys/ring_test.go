package keys

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"bhive/adapters"
	"bhive/adapters/local"
)

// flaky is a store that can be away and counts what it is asked.
type flaky struct {
	adapters.Store
	away  atomic.Bool
	asked atomic.Int64
	hang  func() // called before a value is got, if any
	put   func() // called after a value was put, if any
}

func (f *flaky) GetValue(ctx context.Context, tenant, key string) ([]byte, int64, error) {
	f.asked.Add(1)
	if f.hang != nil {
		f.hang()
	}
	if f.away.Load() {
		return nil, 0, fmt.Errorf("asking: %w", adapters.ErrStoreUnavailable)
	}
	return f.Store.GetValue(ctx, tenant, key)
}

func (f *flaky) PutValue(ctx context.Context, tenant, key string, value []byte, rev int64) (int64, error) {
	rev, err := f.Store.PutValue(ctx, tenant, key, value, rev)
	if f.put != nil {
		f.put()
	}
	return rev, err
}

func open(t *testing.T) *flaky {
	t.Helper()
	s, err := local.Open(t.TempDir(), local.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return &flaky{Store: s}
}

// age makes what the ring knows old, or with a negative age fresh for that long.
func (r *Ring) age(by time.Duration) {
	old := *r.known.Load()
	old.stay = time.Now().Add(-by)
	r.known.Store(&old)
}

func create(t *testing.T, r *Ring, tenant string, role Role) (Key, string) {
	t.Helper()
	k, secret, err := r.Create(t.Context(), tenant, role, "")
	if err != nil {
		t.Fatal(err)
	}
	return k, secret
}

// A ring remembers, sees what another one changed once that is old, and goes by what it knew where the store is away.
func TestMemory(t *testing.T) {
	store := open(t)
	here, there := New(store), New(store)
	_, admin := create(t, here, "default", Admin)
	anna, secret := create(t, here, "anna", Tenant)
	find := func(r *Ring, secret string, want error) {
		t.Helper()
		k, err := r.Find(t.Context(), secret)
		if !errors.Is(err, want) || want == nil && (k.SHA256 == "" || strings.Contains(secret, k.SHA256)) {
			t.Errorf("found %+v, %v; want %v", k, err, want)
		}
	}
	find(there, secret, nil)
	there.age(-time.Hour) // however slow the machine is
	asked := store.asked.Load()
	for range 100 {
		find(there, secret, nil)
	}
	if n := store.asked.Load() - asked; n > 0 {
		t.Errorf("100 requests asked the store %d times", n)
	}
	if err := here.Revoke(t.Context(), anna.ID, false); err != nil {
		t.Fatal(err)
	}
	find(here, secret, ErrUnknown)
	there.age(time.Second)
	find(there, secret, ErrUnknown)

	store.away.Store(true)
	there.age(time.Second)
	find(there, admin, nil)
	find(there, secret, ErrUnknown)
	if _, _, err := there.Create(t.Context(), "anna", Tenant, ""); !errors.Is(err, adapters.ErrStoreUnavailable) {
		t.Errorf("a key made with the store away: %v", err)
	}
	find(New(store), admin, adapters.ErrStoreUnavailable)
	store.away.Store(false)
	there.age(time.Second)
	find(there, admin, nil)
}

// While the store hangs, one request waits for it; when it is asked again, nobody does, and what it says then holds.
func TestHangingStore(t *testing.T) {
	store := open(t)
	here, there := New(store), New(store)
	create(t, here, "default", Admin)
	anna, secret := create(t, here, "anna", Tenant)
	find := func(want error) {
		t.Helper()
		if _, err := there.Find(t.Context(), secret); !errors.Is(err, want) {
			t.Errorf("found with %v, want %v", err, want)
		}
	}
	find(nil)
	store.away.Store(true)
	there.age(time.Second)
	find(nil)

	asked, answer := make(chan struct{}), make(chan struct{})
	store.hang = func() { asked <- struct{}{}; <-answer }
	there.age(0)
	for range 3 { // none of them is answered by the store
		find(nil)
	}
	<-asked
	find(nil)
	store.away.Store(false)
	answer <- struct{}{}
	there.asking.Lock() // the store has answered
	store.hang = nil
	there.asking.Unlock()
	if err := here.Revoke(t.Context(), anna.ID, false); err != nil {
		t.Fatal(err)
	}
	there.age(time.Second)
	find(ErrUnknown)

	// What was known when the store was away does not hold for long after.
	store.away.Store(true)
	there.age(time.Second)
	find(ErrUnknown)
	store.away.Store(false)
	_, secret = create(t, here, "ben", Tenant)
	there.age(linger)
	find(nil)
}

// Two rings that change the keys at once lose nothing.
func TestConcurrentChanges(t *testing.T) {
	store := open(t)
	create(t, New(store), "default", Admin)
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			r := New(store)
			for range 5 {
				a, secret, err := r.Create(t.Context(), "anna", Tenant, "")
				if err == nil {
					_, err = r.Find(t.Context(), secret)
				}
				if err != nil {
					t.Error(err)
					return
				}
				if _, _, err := r.Create(t.Context(), "ben", Tenant, ""); err != nil {
					t.Error(err)
				}
				if err := r.Revoke(t.Context(), a.ID, true); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	all, err := New(store).List(t.Context())
	if err != nil || len(all) != 21 {
		t.Errorf("%d keys are left, want 21: %v", len(all), err)
	}
}

func TestLastAdmin(t *testing.T) {
	r := New(open(t))
	if _, _, err := r.Create(t.Context(), "anna", Tenant, ""); !errors.Is(err, ErrLastAdmin) {
		t.Errorf("a first key that is a tenant's: %v", err)
	}
	admin, _ := create(t, r, "default", Admin)
	anna, _ := create(t, r, "anna", Tenant)
	for _, keep := range []bool{false, true} {
		if err := r.Revoke(t.Context(), admin.ID, keep); !errors.Is(err, ErrLastAdmin) {
			t.Errorf("the last administrator's: %v", err)
		}
	}
	if err := r.Revoke(t.Context(), anna.ID, true); err != nil {
		t.Error(err)
	}
	if err := r.Revoke(t.Context(), admin.ID, true); !errors.Is(err, ErrLastAdmin) {
		t.Errorf("the last key: %v", err)
	}
	if err := r.Revoke(t.Context(), admin.ID, false); err != nil {
		t.Error(err)
	}
	if empty, err := r.Empty(t.Context()); err != nil || !empty {
		t.Errorf("empty %v, %v", empty, err)
	}
}

func TestDamage(t *testing.T) {
	store := open(t)
	for _, bad := range []string{"{", `[{"id":"key-1","sha256":"xyz"}]`, `[{"id":"key-1","sha256":"00"}]`} {
		if _, err := store.PutValue(t.Context(), SystemTenant, valueKey, []byte(bad), adapters.AnyRev); err != nil {
			t.Fatal(err)
		}
		if _, err := New(store).Find(t.Context(), "x"); !errors.Is(err, adapters.ErrCorrupt) {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

// What a change has stored holds, whatever becomes of the store or the client right after.
func TestChangeThenAway(t *testing.T) {
	store := open(t)
	r := New(store)
	create(t, r, "default", Admin)
	anna, secret := create(t, r, "anna", Tenant)
	leave := func() { store.away.Store(true) }
	store.put = leave
	if err := r.Revoke(t.Context(), anna.ID, false); err != nil {
		t.Errorf("a revocation that was stored: %v", err)
	}
	if _, err := r.Find(t.Context(), secret); !errors.Is(err, ErrUnknown) {
		t.Errorf("a revoked key, with the store away: %v", err)
	}
	store.away.Store(false)
	_, secret, err := r.Create(t.Context(), "ben", Tenant, "")
	if err != nil {
		t.Fatalf("a key that was stored: %v", err)
	}
	if k, err := r.Find(t.Context(), secret); err != nil || k.Tenant != "ben" {
		t.Errorf("a new key, with the store away: %+v, %v", k, err)
	}
}
