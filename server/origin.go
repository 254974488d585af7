package server

import "net/http"

// withOriginCheck refuses what a web page of another origin makes a browser send: without API keys, being on this machine is all the
// permission there is.
func (s *Server) withOriginCheck(next http.Handler) http.Handler {
	protection := http.NewCrossOriginProtection()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := protection.Check(r); err != nil {
			s.fail(w, r, &apiError{Status: http.StatusForbidden, Type: "invalid_request_error", Code: "cross_origin", Message: err.Error()})
			return
		}
		next.ServeHTTP(w, r)
	})
}
