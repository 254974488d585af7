package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"bhive/adapters"
	"bhive/server/keys"

	"github.com/go-chi/chi/v5"
)

type callerKey struct{}

// caller is who asks.
type caller struct {
	home   string // the tenant of the key
	tenant string // for whom this request is: home, but where an administrator acts for another; adapters.AllTenants in a list of all
	admin  bool   // by a key: may name other tenants' adapters
	local  bool   // by being on this machine, where there are no keys
}

// openRoutes answer without a key: they tell nothing of any tenant.
var openRoutes = map[string]bool{"/health": true, "/ready": true, "/ping": true, "/version": true, "/openapi.yaml": true}

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
			if !localName(r.Host) {
				return caller{}, &apiError{Status: http.StatusForbidden, Type: "invalid_request_error", Code: "cross_origin",
					Message: fmt.Sprintf("the host %q may be of a page on the web: without API keys a server answers to localhost and to loopback addresses; bhive keys makes keys", r.Host)}
			}
			return caller{home: adapters.DefaultTenant, tenant: adapters.DefaultTenant, local: true}, nil
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
	return caller{home: k.Tenant, tenant: k.Tenant, admin: k.Role == keys.Admin}, nil
}

// localName reports whether a client asked for this machine by an address or a name that no page of the web can have: to a browser, a page
// whose name was made to lead here is of this server's own origin. No browser leaves the name out.
func localName(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.ToLower(strings.Trim(host, "[]"))
	if ip := net.ParseIP(host); ip != nil {
		return ip.IsLoopback()
	}
	return host == "" || host == "localhost" || slices.Contains([]string{".localhost", ".local", ".internal"}, host[max(0, strings.LastIndexByte(host, '.')):])
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

// shownID is a name or an id as the caller writes it: with its owner, where that is another tenant.
func shownID(ctx context.Context, owner, id string) string {
	if owner == "" || owner == callerOf(ctx).home {
		return id
	}
	return owner + "/" + id
}

// bareID is an id without the owner that shownID gave it.
func bareID(id string) string { return id[strings.LastIndexByte(id, '/')+1:] }

// actFor lets a request be for that tenant.
func actFor(ctx context.Context, owner string) context.Context {
	c := callerOf(ctx)
	c.tenant = owner
	return context.WithValue(ctx, callerKey{}, c)
}

// withOwner lets the name or id in a path be tenant/name (its slash as %2F): an administrator acts for that tenant then.
func (s *Server) withOwner(param string, notFound func(written string) error) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			written, err := url.PathUnescape(chi.URLParam(r, param))
			if err != nil {
				next.ServeHTTP(w, r)
				return
			}
			ctx, name := r.Context(), written
			if owner, own, full := strings.Cut(written, "/"); full {
				c := callerOf(ctx)
				if !c.admin && owner != c.home || adapters.CheckName(owner) != nil {
					s.fail(w, r, notFound(written))
					return
				}
				ctx, name = actFor(ctx, owner), own
			}
			params := &chi.RouteContext(ctx).URLParams
			for i, key := range params.Keys {
				if key == param {
					params.Values[i] = name
				}
			}
			next.ServeHTTP(w, r.WithContext(ctx))
		})
	}
}

// tenantParam is the query's field that withScope reads.
const tenantParam = "tenant"

// withScope lets an administrator list or make another tenant's things with ?tenant=NAME, and list all tenants' with ?tenant=*.
func (s *Server) withScope(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		owner := r.URL.Query().Get(tenantParam)
		c := callerOf(r.Context())
		switch {
		case owner == "" || owner == c.home:
			next.ServeHTTP(w, r)
		case !c.admin:
			s.fail(w, r, adminRequired())
		case owner == adapters.AllTenants && r.Method != http.MethodGet, owner != adapters.AllTenants && adapters.CheckName(owner) != nil:
			s.fail(w, r, badField(tenantParam, "%s: must be the name of a tenant, is %q", tenantParam, owner))
		default:
			next.ServeHTTP(w, r.WithContext(actFor(r.Context(), owner)))
		}
	})
}

func adminRequired() *apiError {
	return &apiError{Status: http.StatusForbidden, Type: "invalid_request_error", Code: "admin_required", Message: "this needs an administrator's API key"}
}

// withAdmin lets administrators pass, and who is on this machine while there are no keys.
func (s *Server) withAdmin(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c := callerOf(r.Context()); !c.admin && !c.local {
			s.fail(w, r, adminRequired())
			return
		}
		next.ServeHTTP(w, r)
	})
}
