package server

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"bhive/adapters"
)

// awayStore is a store that says it is away, when told so.
type awayStore struct {
	adapters.Store
	away atomic.Bool
}

func (s *awayStore) Ping(ctx context.Context) error {
	if s.away.Load() {
		return adapters.ErrStoreUnavailable
	}
	return s.Store.Ping(ctx)
}

// readiness is what /ready says.
func readiness(c *client, status int) string {
	c.t.Helper()
	a := c.get("/ready").want(status)
	var out struct {
		Status  string
		Reasons []notReady
	}
	a.into(&out)
	codes := []string{out.Status}
	for _, r := range out.Reasons {
		codes = append(codes, r.Code)
	}
	if (a.Header.Get("Retry-After") != "") != (status != http.StatusOK) {
		c.t.Errorf("Retry-After is %q with %d", a.Header.Get("Retry-After"), status)
	}
	return strings.Join(codes, " ")
}

func TestReady(t *testing.T) {
	store := &awayStore{}
	c := shared(t).serve(t, func(_ *Config, d *Deps) { store.Store = d.Store; d.Store = store })
	expect := func(status int, want string, up string) {
		t.Helper()
		c.server.probe.mu.Lock()
		c.server.probe.at = time.Time{} // ask again
		c.server.probe.mu.Unlock()
		if got := readiness(c, status); got != want {
			t.Errorf("/ready says %q, want %q", got, want)
		}
		if got := string(c.get("/metrics").want(200).Body); !strings.Contains(got, "\nbhive_registry_up "+up+"\n") {
			t.Errorf("bhive_registry_up is not %s", up)
		}
	}
	expect(200, "ready", "1")
	store.away.Store(true)
	expect(503, "not_ready store_unavailable", "0")
	c.get("/health").want(200) // alive all the same
	store.away.Store(false)
	expect(200, "ready", "1")
	store.away.Store(true)
	c.server.drain()
	expect(503, "not_ready shutting_down store_unavailable", "0")
	c.get("/health").wantError(503, "", "shutting_down")
}

// A probe asks its store once, however many ask it.
func TestProbeIsFresh(t *testing.T) {
	store := &countingStore{}
	p := &probe{store: store, log: shared(t).serve(t, nil).server.log}
	for range 50 {
		if err := p.check(t.Context()); !errors.Is(err, adapters.ErrStoreUnavailable) {
			t.Fatal(err)
		}
		p.at = time.Now().Add(time.Hour) // however slow the machine is
	}
	if n := store.pings.Load(); n != 1 {
		t.Errorf("%d pings", n)
	}
}

type countingStore struct {
	adapters.Store
	pings atomic.Int64
}

func (s *countingStore) Ping(context.Context) error {
	s.pings.Add(1)
	return adapters.ErrStoreUnavailable
}

// While the model is loaded, the address answers already.
func TestFrontWhileLoading(t *testing.T) {
	h := shared(t)
	f, err := NewFront(Config{}, h.deps.Store, nil)
	if err != nil {
		t.Fatal(err)
	}
	web := httptest.NewServer(f)
	t.Cleanup(web.Close)
	c := &client{t: t, url: web.URL, http: &http.Client{Transport: validating(t)}}
	if got := readiness(c, 503); got != "not_ready loading" {
		t.Errorf("/ready says %q", got)
	}
	c.get("/health").want(200)
	for _, path := range []string{"/v1/models", "/metrics", "/adapters"} {
		if a := c.get(path); a.wantError(503, "", "loading") == "" || a.Header.Get("Retry-After") == "" {
			t.Errorf("%s has no Retry-After", path)
		}
	}
	f.Serve(serve(t).server)
	if got := readiness(c, 200); got != "ready" {
		t.Errorf("/ready says %q", got)
	}
	c.get("/v1/models").want(200)
}

// What ends while it loads ends at once, and a server that comes too late is draining.
func TestFrontEndsWhileLoading(t *testing.T) {
	f, err := NewFront(Config{Addr: "127.0.0.1:0"}, shared(t).deps.Store, nil)
	if err != nil {
		t.Fatal(err)
	}
	l, err := f.Listen(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- f.Run(ctx, l) }()
	a, err := http.Get("http://" + l.Addr().String() + "/ready")
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(a.Body)
	a.Body.Close()
	if a.StatusCode != 503 || !bytes.Contains(body, []byte("loading")) {
		t.Errorf("%d %s", a.StatusCode, body)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	s := serve(t).server
	f.Serve(s)
	if !s.draining.Load() {
		t.Error("the server does not know that it is late")
	}
}
