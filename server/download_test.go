package server

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"bhive/server/api"
)

// limited is a response that each piece must be given a time limit for.
type limited struct {
	*httptest.ResponseRecorder
	t    *testing.T
	till time.Time
}

func (l *limited) SetWriteDeadline(till time.Time) error { l.till = till; return nil }

func (l *limited) Write(p []byte) (int, error) {
	if l.till.IsZero() || len(p) > piece {
		l.t.Errorf("%d bytes are written until %v", len(p), l.till)
	}
	l.till = time.Time{}
	return l.ResponseRecorder.Write(p)
}

// A client that does not read cannot make the server hold what it sends: every piece of a download has a time limit.
func TestDownloadsEnd(t *testing.T) {
	c := serve(t)
	shared(t).publish(t, "downloaded", 16, 1)
	var f api.File
	c.form("purpose", "fine-tune", "file=a.jsonl", strings.Repeat("x", 300000)).want(200).into(&f)
	for path, size := range map[string]int{"/adapters/downloaded/export": 500000, "/basis/file": 500000, "/v1/files/" + f.Id + "/content": 300000} {
		w := &limited{ResponseRecorder: httptest.NewRecorder(), t: t}
		c.server.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "http://localhost"+path, nil))
		if w.Code != 200 || w.Body.Len() < size {
			t.Errorf("%s: status %d, %d bytes", path, w.Code, w.Body.Len())
		}
		if !w.till.IsZero() {
			t.Errorf("%s leaves the time limit %v to the connection", path, w.till)
		}
	}
}
