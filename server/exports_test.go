package server

import (
	"context"
	"errors"
	"net/http"
	"testing"
	"time"

	"bhive/adapters"
)

// TestExportsAtOnce: clients of one tenant that read exports slowly hold no more adapters in memory than its turns, and nobody else up.
func TestExportsAtOnce(t *testing.T) {
	c := serve(t)
	shared(t).publish(t, "slowly-read", 8, 1)
	as := func(tenant string) context.Context {
		return context.WithValue(t.Context(), callerKey{}, caller{home: tenant, tenant: tenant})
	}
	var leaves []func()
	for range maxExports {
		leave, err := c.server.enterExport(as(adapters.DefaultTenant))
		if err != nil {
			t.Fatal(err)
		}
		leaves = append(leaves, leave)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, "GET", c.url+"/adapters/slowly-read/export", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.http.Do(r); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("one more than may be: %v", err)
	}
	if other, err := c.server.enterExport(as("other")); err != nil {
		t.Error(err)
	} else {
		other()
	}
	for _, leave := range leaves {
		leave()
	}
	c.get("/adapters/slowly-read/export").want(200)
}
