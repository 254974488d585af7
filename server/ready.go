package server

import (
	"context"
	"log/slog"
	"net/http"
	"strconv"
	"sync"
	"time"

	"bhive/adapters"
)

const (
	probeFresh = 500 * time.Millisecond // how long what the store said holds
	probeTime  = time.Second            // how long it may take to say something
)

// probe asks the store whether it serves; how often others ask the probe does not matter.
type probe struct {
	store adapters.Store
	log   *slog.Logger

	mu  sync.Mutex
	at  time.Time
	err error
}

// check is nil where the store serves.
func (p *probe) check(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if time.Since(p.at) < probeFresh {
		return p.err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), probeTime)
	defer cancel()
	was := p.err
	p.err = p.store.Ping(ctx)
	p.at = time.Now()
	switch {
	case was == nil && p.err != nil:
		p.log.WarnContext(ctx, "the registry is away", "error", p.err)
	case was != nil && p.err == nil:
		p.log.InfoContext(ctx, "the registry is back")
	}
	return p.err
}

// notReady is a reason for which no new requests should come here.
type notReady struct {
	Code    string `json:"code"` // as an error's: loading, shutting_down, store_unavailable
	Message string `json:"message"`
}

// retryReady is when a server that is not ready may be asked again, in seconds.
const retryReady = 5

func writeReady(w http.ResponseWriter, reasons []notReady) {
	if len(reasons) == 0 {
		writeJSON(w, http.StatusOK, map[string]string{"status": "ready"})
		return
	}
	w.Header().Set("Retry-After", strconv.Itoa(retryReady))
	writeJSON(w, http.StatusServiceUnavailable, map[string]any{"status": "not_ready", "reasons": reasons})
}

// ready says whether new requests should come here. While the registry is away, what is loaded goes on to be served all the same.
func (s *Server) ready(w http.ResponseWriter, r *http.Request) error {
	var reasons []notReady
	if s.draining.Load() {
		reasons = append(reasons, notReady{"shutting_down", errDraining.Error()})
	}
	if s.probe.check(r.Context()) != nil { // the log says why: this route is everybody's
		reasons = append(reasons, notReady{"store_unavailable", "the registry does not answer: loaded adapters go on to be served, nothing can be written"})
	}
	writeReady(w, reasons)
	return nil
}
