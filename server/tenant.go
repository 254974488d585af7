package server

import (
	"context"
	"net/http"

	"bhive/adapters"
)

type tenantKey struct{}

// withTenant decides who asks, in this one place. Without API keys everybody is the default tenant.
func (s *Server) withTenant(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), tenantKey{}, adapters.DefaultTenant)))
	})
}

// tenant is the tenant that withTenant found.
func tenant(ctx context.Context) string { return ctx.Value(tenantKey{}).(string) }
