package grammar

import (
	"context"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
)

// TestTurns: one is on at a time, a tenant that comes behind many of another is next, and who leaves is not waited for.
func TestTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTurns()
		first, err := s.take(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		var mu sync.Mutex
		var order []string
		note := func(what string) {
			mu.Lock()
			order = append(order, what)
			mu.Unlock()
		}
		come := func(ctx context.Context, tenant string) {
			go func() {
				end, err := s.take(ctx, tenant)
				if err != nil {
					note("left " + tenant)
					return
				}
				note(tenant)
				end()
			}()
			synctest.Wait()
		}
		for range 3 {
			come(t.Context(), "a")
		}
		ctx, cancel := context.WithCancel(t.Context())
		come(ctx, "a")
		come(ctx, "c")
		come(t.Context(), "b")
		cancel()
		synctest.Wait()
		slices.Sort(order) // both leave at once
		first()
		synctest.Wait()
		if want := []string{"left a", "left c", "b", "a", "a", "a"}; !slices.Equal(order, want) {
			t.Errorf("they came in the order %q, want %q", order, want)
		}
		if len(s.of) != 0 {
			t.Errorf("%d tenants are still here", len(s.of))
		}
	})
}
