package server

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"

	"bhive/adapters"
	"bhive/server/api"
)

// TestAnotherBase: of adapters that the registry holds for another base the models say nothing, and what is known of one names no base.
func TestAnotherBase(t *testing.T) {
	h := ownHive(t, hiveConfig{})
	c := h.serve(t, nil)
	h.publish(t, "ours", 4, 1)
	w := adapters.NewWeights(h.deps.Basis.Geometry, 4, 8)
	if _, err := h.deps.Registry.Save(t.Context(), adapters.DefaultTenant, adapters.Version{Name: "theirs", BasisDigest: "other", BaseHash: "other"}, w, adapters.PublishOptions{}); err != nil {
		t.Fatal(err)
	}
	var models api.ModelList
	c.get("/v1/models").want(200).into(&models)
	var names []string
	for _, m := range models.Data {
		names = append(names, m.Id)
	}
	if want := []string{"demo", "ours"}; !slices.Equal(names, want) {
		t.Errorf("the models are %v, want %v", names, want)
	}
	var model api.Model
	if c.get("/v1/models/theirs").want(200).into(&model); model.Parent != nil {
		t.Errorf("its parent is %q", *model.Parent)
	}
	for name, want := range map[string]bool{"ours": true, "theirs": false} {
		var a api.Adapter
		if c.get("/adapters/" + name).want(200).into(&a); (a.Base != nil) != want {
			t.Errorf("%s: a base is named: %v", name, a.Base != nil)
		}
	}
	c.post("/v1/completions", object{"model": "theirs", "prompt": "x"}).wantError(409, "", "base_mismatch")
}

// listingStore counts how often all jobs are read.
type listingStore struct {
	adapters.Store
	lists atomic.Int64
}

func (s *listingStore) ListJobs(ctx context.Context, tenant string, states ...string) ([]adapters.Job, error) {
	s.lists.Add(1)
	return s.Store.ListJobs(ctx, tenant, states...)
}

// TestListReadsJobsOnce: a list of adapters reads the jobs once, however many adapters there are, and says of each what its own page says.
func TestListReadsJobsOnce(t *testing.T) {
	var store *listingStore
	h := ownHive(t, hiveConfig{over: func(s adapters.Store) adapters.Store {
		store = &listingStore{Store: s}
		return store
	}})
	c := h.serve(t, nil)
	for i := range 4 {
		h.publish(t, fmt.Sprint("made-", i), 4, uint64(i))
	}
	c.post("/adapters", object{"name": "trained", "examples": pirates(), "epochs": 1}).want(202)
	c.get("/adapters/trained/events").want(200)
	c.post("/adapters", object{"name": "trained", "parent": "trained", "examples": pirates(), "epochs": 1}).want(202)
	c.get("/adapters/trained/events").want(200)
	c.post("/adapters", object{"name": "trains", "examples": pirates(), "max_steps": 100000}).want(202)
	c.post("/adapters/trains/pause", nil).want(200)
	c.post("/adapters", object{"name": "given-up", "examples": pirates(), "max_steps": 100000}).want(202)
	c.post("/adapters/given-up/cancel", nil).want(200)
	before := store.lists.Load()
	var list api.AdapterList
	c.get("/adapters").want(200).into(&list)
	if n := store.lists.Load() - before; n > 2 { // the manager may have looked too
		t.Errorf("the jobs were read %d times", n)
	}
	var names []string
	for _, a := range list.Data {
		names = append(names, a.Name)
		var one api.Adapter
		if c.get("/adapters/" + a.Name).want(200).into(&one); !bytes.Equal(mustJSON(one), mustJSON(a)) {
			t.Errorf("listed as %s, it is %s", mustJSON(a), mustJSON(one))
		}
	}
	if want := []string{"made-0", "made-1", "made-2", "made-3", "trained", "trains"}; !slices.Equal(names, want) {
		t.Errorf("listed are %v, want %v", names, want)
	}
}
