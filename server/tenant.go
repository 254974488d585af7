package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"bhive/adapters"
	"bhive/server/keys"

	"github.com/go-chi/chi/v5"
)

type callerKey struct{}

// caller is who asks.
type caller struct {
	tenant string
	admin  bool // by a key: may name other tenants' adapters
	local  bool // by being on this machine, where there are no keys
}

// openRoutes answer without a key: they tell nothing of any tenant.
var openRoutes = map[string]bool{"/health": true, "/ping": true, "/version": true, "/openapi.yaml": true}

// withTenant decides who asks, in this one place: by the API key, or, while there are none and the address is a loopback one, everybody is
// the default tenant.
func (s *Server) withTenant(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if openRoutes[r.URL.Path] || s.config.OpenMetrics && r.URL.Path == "/metrics" {
			next.ServeHTTP(w, r)
			return
		}
		c, err := s.caller(r)
		if err != nil {
			s.fail(w, r, err)
			return
		}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), callerKey{}, c)))
	})
}

func (s *Server) caller(r *http.Request) (caller, error) {
	if s.config.loopback() {
		empty, err := s.keys.Empty(r.Context())
		if err != nil {
			return caller{}, err
		}
		if empty {
			return caller{tenant: adapters.DefaultTenant, local: true}, nil
		}
	}
	header := r.Header.Get("Authorization")
	kind, secret, _ := strings.Cut(header, " ")
	if secret = strings.TrimSpace(secret); !strings.EqualFold(kind, "Bearer") || secret == "" {
		return caller{}, badKey("You didn't provide an API key. Give it in the header Authorization, as: Bearer YOUR_KEY")
	}
	k, err := s.keys.Find(r.Context(), secret)
	if errors.Is(err, keys.ErrUnknown) {
		return caller{}, badKey("Incorrect API key provided: %s", masked(secret))
	}
	if err != nil {
		return caller{}, err
	}
	return caller{tenant: k.Tenant, admin: k.Role == keys.Admin}, nil
}

func badKey(format string, args ...any) *apiError {
	return &apiError{Status: http.StatusUnauthorized, Type: "invalid_request_error", Code: "invalid_api_key", Message: fmt.Sprintf(format, args...)}
}

// masked shows enough of a secret to tell which it was.
func masked(secret string) string {
	if len(secret) < 20 || !plain(secret) {
		return "***"
	}
	return secret[:12] + "***" + secret[len(secret)-4:]
}

func callerOf(ctx context.Context) caller { return ctx.Value(callerKey{}).(caller) }

// tenant is the tenant that withTenant found.
func tenant(ctx context.Context) string { return callerOf(ctx).tenant }

// withOwner lets the name in a path be tenant/name (its slash as %2F): an administrator acts for that tenant then.
func (s *Server) withOwner(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		written, err := url.PathUnescape(chi.URLParam(r, "name"))
		owner, name, full := strings.Cut(written, "/")
		if err != nil || !full {
			next.ServeHTTP(w, r)
			return
		}
		c := callerOf(r.Context())
		if !c.admin && owner != c.tenant || adapters.CheckName(owner) != nil {
			s.fail(w, r, notFound(written))
			return
		}
		c.tenant = owner
		params := &chi.RouteContext(r.Context()).URLParams
		for i, key := range params.Keys {
			if key == "name" {
				params.Values[i] = name
			}
		}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), callerKey{}, c)))
	})
}

// withAdmin lets administrators pass, and who is on this machine while there are no keys.
func (s *Server) withAdmin(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c := callerOf(r.Context()); !c.admin && !c.local {
			s.fail(w, r, &apiError{Status: http.StatusForbidden, Type: "invalid_request_error", Code: "admin_required", Message: "this needs an administrator's API key"})
			return
		}
		next.ServeHTTP(w, r)
	})
}
