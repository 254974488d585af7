package server

import (
	"net/http"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/go-chi/chi/v5/middleware"
)

// withAccessLog logs each request when it has ended and counts it. Metrics and health are asked for all the time: they are logged at debug level.
func (s *Server) withAccessLog(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		wrapped := middleware.NewWrapResponseWriter(w, r.ProtoMajor)
		defer func() {
			took := time.Since(start)
			route := chi.RouteContext(r.Context()).RoutePattern()
			if route == "" {
				route = "unknown"
			}
			status := wrapped.Status()
			if status == 0 {
				status = http.StatusOK
			}
			s.metrics.observeHTTP(knownMethod(r.Method), route, status, took)
			log := s.log.InfoContext
			if route == "/metrics" || route == "/health" || route == "/ready" || route == "/ping" {
				log = s.log.DebugContext
			}
			log(r.Context(), "request", "request", requestID(r.Context()), "method", r.Method, "path", r.URL.Path, "status", status,
				"bytes", wrapped.BytesWritten(), "ms", float64(took.Microseconds())/1000)
		}()
		next.ServeHTTP(wrapped, r)
	})
}

// knownMethod keeps what a client makes up out of the metrics, which remember every label.
func knownMethod(method string) string {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions, http.MethodConnect, http.MethodTrace:
		return method
	}
	return "other"
}
