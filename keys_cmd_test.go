package main

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
)

// TestRevokeEscapes: whatever is given as a key's id is one part of the path that the server is asked for.
func TestRevokeEscapes(t *testing.T) {
	var asked string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { asked = r.Method + " " + r.RequestURI }))
	defer server.Close()
	for id, want := range map[string]string{"key-1": "DELETE /admin/keys/key-1", "a/../b?c#d e%": "DELETE /admin/keys/a%2F..%2Fb%3Fc%23d%20e%25"} {
		c := revokeKeyCmd{keyHolder{remote: remote{Server: server.URL}}, id}
		if err := c.Run(t.Context(), slog.New(slog.DiscardHandler)); err != nil || asked != want {
			t.Errorf("%s is %s, %v", want, asked, err)
		}
	}
}
