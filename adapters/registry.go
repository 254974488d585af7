package adapters

import (
	"context"
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

// Key identifies the target for ever: "tenant/name@7", a mix "tenant/a@7:0.7+tenant/b@3:0.3", the base "".
func (t Target) Key() string { panic("to come") }

// Registry resolves references to versions. It remembers what it has seen and follows the store's change feed, so
// that a resolved name stays resolvable while the store is away. Safe for concurrent use.
type Registry struct {
	store Store
}

// NewRegistry makes a registry over a store. onChange, where not nil, is called by Run for every change, after the
// registry has taken notice of it.
func NewRegistry(s Store, onChange func(Change)) *Registry { panic("to come") }

// Run follows the change feed until ctx ends. Without it every Resolve asks the store.
func (r *Registry) Run(ctx context.Context) error { panic("to come") }

// Resolve turns a reference into a target for the tenant. Parts that name another tenant need admin (ErrNotFound).
func (r *Registry) Resolve(ctx context.Context, tenant string, ref Ref, admin bool) (Target, error) {
	panic("to come")
}

// Save encodes w, stores the blob, checks it and publishes it under name: the whole of a publication.
func (r *Registry) Save(ctx context.Context, tenant, name string, w *Weights, v Version, o PublishOptions) (Version, error) {
	panic("to come")
}

// Load reads a version's B back from the store and verifies its hash.
func (r *Registry) Load(ctx context.Context, v Version, g Geometry) (*Weights, Meta, error) {
	panic("to come")
}
