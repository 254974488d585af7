package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"bhive/adapters"
	"bhive/server/keys"
)

// Front holds the address. Until it is given a Server it is alive and not ready: whatever else is asked gets a 503.
type Front struct {
	config   Config
	keys     *keys.Ring
	log      *slog.Logger
	server   atomic.Pointer[Server]
	draining atomic.Bool
}

// errLoading is returned for every request while the model is being loaded.
var errLoading = errors.New("the model is being loaded")

// NewFront makes a front; it acquires nothing. log may be nil.
func NewFront(c Config, store adapters.Store, log *slog.Logger) (*Front, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Front{config: c.defaults(), keys: keys.New(store), log: log}, nil
}

// Serve lets s answer from now on. It is called once at most.
func (f *Front) Serve(s *Server) {
	f.server.Store(s)
	if f.draining.Load() { // which Run may have begun just before
		s.drain()
	}
}

// ServeHTTP is http.Handler's.
func (f *Front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if s := f.server.Load(); s != nil {
		s.handler.ServeHTTP(w, r)
		return
	}
	switch r.URL.Path {
	case "/health", "/ping":
		writeJSON(w, http.StatusOK, map[string]string{"status": "ok"})
	case "/ready":
		reasons := []notReady{{"loading", errLoading.Error()}}
		if f.draining.Load() {
			reasons = append(reasons, notReady{"shutting_down", errDraining.Error()})
		}
		writeReady(w, reasons)
	default:
		writeError(w, asAPIError(errLoading))
	}
}

// Listen opens the configured address. ErrNoKeys.
func (f *Front) Listen(ctx context.Context) (net.Listener, error) {
	if !f.config.loopback() {
		if empty, err := f.keys.Empty(ctx); err != nil {
			return nil, err
		} else if empty {
			return nil, fmt.Errorf("%w: %s", ErrNoKeys, f.config.Addr)
		}
	}
	l, err := net.Listen("tcp", f.config.Addr)
	if err != nil {
		return nil, fmt.Errorf("listening on %s: %w", f.config.Addr, err)
	}
	return l, nil
}

// Run serves on l until ctx ends, then refuses new work, lets what runs end within DrainTimeout and returns.
func (f *Front) Run(ctx context.Context, l net.Listener) error {
	// Handlers' contexts outlive ctx, so that streams can end; stop ends them when the time for that is over.
	base, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	defer stop(nil)
	h := &http.Server{Handler: f, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute,
		BaseContext: func(net.Listener) context.Context { return base }, ErrorLog: slog.NewLogLogger(f.log.Handler(), slog.LevelWarn)}
	failed := make(chan error, 1)
	go func() { failed <- h.Serve(l) }()
	select {
	case err := <-failed:
		return fmt.Errorf("serving HTTP: %w", err)
	case <-ctx.Done():
	}
	f.draining.Store(true)
	if s := f.server.Load(); s != nil {
		s.drain()
	}
	limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), f.config.DrainTimeout)
	defer cancel()
	err := h.Shutdown(limit)
	if errors.Is(err, context.DeadlineExceeded) {
		f.log.Warn("requests were cut off at shutdown", "after", f.config.DrainTimeout)
		stop(errDraining) // streams end with an error event
		limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), f.config.lastWords)
		defer cancel()
		if err = h.Shutdown(limit); err != nil {
			err = h.Close()
		}
	}
	if serveErr := <-failed; err == nil && !errors.Is(serveErr, http.ErrServerClosed) {
		err = serveErr
	}
	return err
}
