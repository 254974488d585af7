package adapters_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"bhive/adapters"
	"bhive/adapters/local"
)

var tiny = adapters.Geometry{Layers: 1, Hidden: 8, QDim: 8, KVDim: 4, FeedForward: 12}

// outage is a store that can be away.
type outage struct {
	adapters.Store
	away atomic.Bool
	gets atomic.Int64
}

func (o *outage) Get(ctx context.Context, tenant, name string, number int) (adapters.Version, error) {
	if o.gets.Add(1); o.away.Load() {
		return adapters.Version{}, adapters.ErrStoreUnavailable
	}
	return o.Store.Get(ctx, tenant, name, number)
}

func open(t *testing.T) *outage {
	t.Helper()
	s, err := local.Open(t.TempDir(), local.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return &outage{Store: s}
}

func save(t *testing.T, r *adapters.Registry, tenant, name string, fill float32) adapters.Version {
	t.Helper()
	w := adapters.NewWeights(tiny, 2, 4)
	for i := range w.Data {
		w.Data[i] = fill
	}
	v, err := r.Save(context.Background(), tenant, adapters.Version{Name: name, BasisDigest: "rows", BaseHash: "base"}, w, adapters.PublishOptions{})
	if err != nil {
		t.Fatal(err)
	}
	got, _, err := r.Load(context.Background(), v, tiny)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(w, got); d != "" {
		t.Fatal(d)
	}
	return v
}

func resolve(r *adapters.Registry, tenant, ref string, admin bool) (string, error) {
	p, err := adapters.ParseRef(ref)
	if err != nil {
		return "", err
	}
	t, err := r.Resolve(context.Background(), tenant, p, admin)
	return t.Key(), err
}

func TestResolve(t *testing.T) {
	r := adapters.NewRegistry(open(t), nil)
	save(t, r, "", "a", 1)
	save(t, r, "", "a", 2)
	save(t, r, "t", "b", 3)
	for _, c := range []struct {
		tenant, ref string
		admin       bool
		key         string
		err         error
	}{
		{"", "a", false, "default/a@2", nil},
		{"default", "a@1", false, "default/a@1", nil},
		{"", "a:0.7+a@1:0.3", false, "default/a@2:0.7+default/a@1:0.3", nil},
		{"t", "t/b", false, "t/b@1", nil},
		{"t", "default/a", true, "default/a@2", nil},
		{"t", "default/a", false, "", adapters.ErrNotFound},
		{"t", "a", false, "", adapters.ErrNotFound},
		{"", "a@3", false, "", adapters.ErrNotFound},
		{"", "a+x", false, "", adapters.ErrNotFound},
	} {
		if key, err := resolve(r, c.tenant, c.ref, c.admin); key != c.key || !errors.Is(err, c.err) {
			t.Errorf("%s for %q: %s, %v", c.ref, c.tenant, key, err)
		}
	}
	if _, err := r.SetLive(context.Background(), "", "a", 1); err != nil {
		t.Fatal(err)
	}
	if key, _ := resolve(r, "", "a", false); key != "default/a@1" {
		t.Errorf("after rollback: %s", key)
	}
	if err := r.Delete(context.Background(), "", "a", 0); err != nil {
		t.Fatal(err)
	}
	if _, err := resolve(r, "", "a@1", false); !errors.Is(err, adapters.ErrNotFound) {
		t.Errorf("after deletion: %v", err)
	}
}

// Two registries share a store, as two replicas do: what is published through one is live through the other, without
// asking the store each time, and while the store is away.
func TestRegistryFollows(t *testing.T) {
	s := open(t)
	changes := make(chan adapters.Change, 100)
	r, other := adapters.NewRegistry(s, func(c adapters.Change) { changes <- c }), adapters.NewRegistry(s.Store, nil)
	ctx, cancel := context.WithCancel(context.Background())
	stopped := make(chan error, 1)
	go func() { stopped <- r.Run(ctx) }()
	seen := func(kind adapters.ChangeKind) {
		t.Helper()
		for {
			select {
			case c := <-changes:
				if c.Kind == kind {
					return
				}
			case <-time.After(10 * time.Second):
				t.Fatalf("no %s in the feed", kind)
			}
		}
	}
	for i := 1; ; i++ { // Run begins at the feed's end; wait until it follows
		save(t, other, "", "warm", float32(i))
		select {
		case <-changes:
		case <-time.After(20 * time.Millisecond):
			continue
		}
		break
	}
	save(t, other, "", "a", 1)
	for c := range changes {
		if c.Name == "a" {
			break
		}
	}
	if key, err := resolve(r, "", "a", false); key != "default/a@1" {
		t.Fatalf("%s, %v", key, err)
	}
	before := s.gets.Load()
	if key, err := resolve(r, "", "a", false); key != "default/a@1" || s.gets.Load() != before {
		t.Errorf("%s, %v: the store was asked again", key, err)
	}
	save(t, other, "", "a", 2)
	seen(adapters.Published)
	s.away.Store(true)
	for _, ref := range []string{"a", "a@1", "a@2"} {
		if key, err := resolve(r, "", ref, false); err != nil {
			t.Errorf("%s while the store is away: %s, %v", ref, key, err)
		}
	}
	if _, err := resolve(r, "", "unknown", false); !errors.Is(err, adapters.ErrStoreUnavailable) {
		t.Errorf("an unknown name while the store is away: %v", err)
	}
	s.away.Store(false)
	if err := other.Delete(ctx, "", "a", 0); err != nil {
		t.Fatal(err)
	}
	seen(adapters.AdapterDeleted)
	if _, err := resolve(r, "", "a", false); !errors.Is(err, adapters.ErrNotFound) {
		t.Errorf("after deletion: %v", err)
	}
	cancel()
	if err := <-stopped; !errors.Is(err, context.Canceled) {
		t.Errorf("Run: %v", err)
	}
}

func ExampleParseRef() {
	r, err := adapters.ParseRef("a:0.7+team/b@3:0.3")
	fmt.Println(r.Parts[1].Tenant, r.Parts[1].Number, r, err)
	// Output: team 3 a:0.7+team/b@3:0.3 <nil>
}

// A B that is on its way is published as one that is there, whatever was thought of it; one that does not come leaves nothing.
func TestSaveEncoding(t *testing.T) {
	dir := t.TempDir()
	s, err := local.Open(dir, local.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	r, ctx := adapters.NewRegistry(s, nil), t.Context()
	w := adapters.NewWeights(tiny, 2, 4)
	for i := range w.Module(0, adapters.Q) {
		w.Data[i] = float32(i)
	}
	want, err := r.Save(ctx, "", adapters.Version{Name: "whole", BasisDigest: "rows", BaseHash: "base"}, w, adapters.PublishOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for number, trained := range [][]adapters.Proj{nil, {adapters.Q}, {adapters.K}} {
		b := adapters.NewEncoding(*w, trained)
		go func() {
			half := len(w.Data) / 2
			b.Put(half, w.Data[half:])
			b.Put(0, w.Data[:half])
		}()
		v, err := r.SaveEncoding(ctx, "", adapters.Version{Name: "a", BasisDigest: "rows", BaseHash: "base"}, b, adapters.PublishOptions{})
		if err != nil || v.SHA256 != want.SHA256 || v.Number != number+1 || v.Rank != 2 || v.Alpha != 4 || v.Scaling != 2 {
			t.Errorf("trained %v: %+v, %v, want the blob of %+v", trained, v, err, want)
		}
		got, _, err := r.Load(ctx, v, tiny)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(w, got); d != "" {
			t.Error(d)
		}
	}
	gone := errors.New("the device failed")
	b := adapters.NewEncoding(*w, nil)
	b.Put(0, w.Data[:5])
	go b.Fail(gone)
	if _, err := r.SaveEncoding(ctx, "", adapters.Version{Name: "b"}, b, adapters.PublishOptions{}); !errors.Is(err, gone) {
		t.Error(err)
	}
	if _, err := s.Get(ctx, "", "b", 0); !errors.Is(err, adapters.ErrNotFound) {
		t.Error(err)
	}
	if left, err := os.ReadDir(filepath.Join(dir, "tmp")); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}
