package server

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
)

// client talks to a server of a test.
type client struct {
	t      testing.TB
	server *Server
	url    string
	key    string // sent with every request, if any
	http   *http.Client
}

// as is the client with an API key.
func (c *client) as(key string) *client {
	other := *c
	other.key = key
	return &other
}

// response is a whole answer.
type response struct {
	t      testing.TB
	Status int
	Header http.Header
	Body   []byte
}

// do sends a request; body is sent as it stands where it is a string, as JSON otherwise.
func (c *client) do(method, path string, body any, header ...string) response {
	c.t.Helper()
	var r io.Reader
	switch b := body.(type) {
	case nil:
	case string:
		r = strings.NewReader(b)
	default:
		raw, err := json.Marshal(b)
		if err != nil {
			c.t.Fatal(err)
		}
		r = bytes.NewReader(raw)
	}
	q, err := http.NewRequestWithContext(c.t.Context(), method, c.url+path, r)
	if err != nil {
		c.t.Fatal(err)
	}
	if r != nil {
		q.Header.Set("Content-Type", "application/json")
	}
	if c.key != "" {
		q.Header.Set("Authorization", "Bearer "+c.key)
	}
	for i := 0; i+1 < len(header); i += 2 {
		q.Header.Set(header[i], header[i+1])
	}
	a, err := c.http.Do(q)
	if err != nil {
		c.t.Fatal(err)
	}
	defer a.Body.Close()
	raw, err := io.ReadAll(a.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	return response{t: c.t, Status: a.StatusCode, Header: a.Header, Body: raw}
}

func (c *client) get(path string) response            { c.t.Helper(); return c.do("GET", path, nil) }
func (c *client) post(path string, body any) response { c.t.Helper(); return c.do("POST", path, body) }

// want fails unless the status is as expected.
func (r response) want(status int) response {
	r.t.Helper()
	if r.Status != status {
		r.t.Fatalf("status %d, want %d: %s", r.Status, status, r.Body)
	}
	return r
}

// into reads the body.
func (r response) into(v any) {
	r.t.Helper()
	if err := json.Unmarshal(r.Body, v); err != nil {
		r.t.Fatalf("%v in %s", err, r.Body)
	}
}

// wantError fails unless the answer is an error with that status, param and code ("" is null), and returns its message.
func (r response) wantError(status int, param, code string) string {
	r.t.Helper()
	r.want(status)
	var e struct {
		Error struct {
			Message string
			Type    string
			Param   *string
			Code    *string
		}
	}
	r.into(&e)
	text := func(s *string) string {
		if s == nil {
			return ""
		}
		return *s
	}
	if text(e.Error.Param) != param || text(e.Error.Code) != code || e.Error.Message == "" || e.Error.Type == "" {
		r.t.Fatalf("want param %q and code %q: %s", param, code, r.Body)
	}
	return e.Error.Message
}

// event is one server-sent event.
type event struct{ ID, Kind, Data string }

// events splits a stream.
func (r response) events() []event {
	r.t.Helper()
	if got := r.Header.Get("Content-Type"); !strings.HasPrefix(got, "text/event-stream") {
		r.t.Fatalf("content type %q: %s", got, r.Body)
	}
	return splitEvents(r.Body)
}

func splitEvents(b []byte) []event {
	var out []event
	for block := range strings.SplitSeq(string(b), "\n\n") {
		var e event
		for line := range strings.SplitSeq(block, "\n") {
			name, value, _ := strings.Cut(line, ": ")
			switch name {
			case "id":
				e.ID = value
			case "event":
				e.Kind = value
			case "data":
				e.Data += value
			}
		}
		if e != (event{}) {
			out = append(out, e)
		}
	}
	return out
}
