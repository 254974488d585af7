package finetune

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"testing"

	"bhive/adapters"
)

// countingStore counts the events that are read of it.
type countingStore struct {
	adapters.Store
	read int
}

func (s *countingStore) Events(ctx context.Context, tenant, id string, after int64, limit int) ([]adapters.Event, error) {
	list, err := s.Store.Events(ctx, tenant, id, after, limit)
	s.read += len(list)
	return list, err
}

// TestLogPages: pages are cut newest first, and each reads what it gives.
func TestLogPages(t *testing.T) {
	store := &countingStore{Store: openStore(t, t.TempDir())}
	h := openHive(t, demoModel(t, 16), store, Config{}, nil)
	var log []json.RawMessage
	for i := range 10 {
		log = append(log, json.RawMessage(fmt.Sprintf(`{"message": "%d"}`, i+1)))
	}
	record := (&job{}).record(Job{ID: "j", Tenant: "anna", State: Succeeded}, "")
	if _, err := store.CreateJob(t.Context(), "anna", record, log...); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		before int64
		limit  int
		want   []string
		more   bool
	}{
		{0, 3, []string{"10", "9", "8"}, true},
		{8, 3, []string{"7", "6", "5"}, true},
		{3, 2, []string{"2", "1"}, false},
		{3, 20, []string{"2", "1"}, false},
		{1, 3, nil, false},
	} {
		store.read = 0
		page, more, err := h.m.Log(t.Context(), "anna", "j", c.before, c.limit)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, e := range page {
			got = append(got, e.Message)
		}
		if !slices.Equal(got, c.want) || more != c.more || store.read != len(c.want) {
			t.Errorf("%d before %d: %v of %d read, more is %v; want %v and %v", c.limit, c.before, got, store.read, more, c.want, c.more)
		}
	}
}
