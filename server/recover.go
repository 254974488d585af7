package server

import (
	"errors"
	"net/http"
	"runtime/debug"

	"github.com/go-chi/chi/v5/middleware"
)

// withRecover turns a panic of a handler into a 500 of that one request.
func (s *Server) withRecover(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			p := recover()
			if p == nil {
				return
			}
			if err, ok := p.(error); ok && errors.Is(err, http.ErrAbortHandler) {
				panic(p)
			}
			s.log.ErrorContext(r.Context(), "panic", "request", requestID(r.Context()), "path", r.URL.Path, "panic", p, "stack", string(debug.Stack()))
			if began, ok := w.(middleware.WrapResponseWriter); ok && began.Status() != 0 {
				panic(http.ErrAbortHandler) // the client must see that the answer is not whole
			}
			s.fail(w, r, errors.New("a handler panicked"))
		}()
		next.ServeHTTP(w, r)
	})
}
