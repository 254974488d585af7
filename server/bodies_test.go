package server

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// TestBodiesAtOnce: JSON bodies with examples are in memory as a whole, so a tenant sends no more at once than one may have; others and JSONL go on.
func TestBodiesAtOnce(t *testing.T) {
	hive := ownHive(t, hiveConfig{})
	c := hive.serve(t, func(c *Config, _ *Deps) { c.MaxTrainingBytes = 1000 })
	body, slow := io.Pipe()
	q, err := http.NewRequestWithContext(t.Context(), "POST", c.url+"/adapters", body)
	if err != nil {
		t.Fatal(err)
	}
	q.ContentLength = 990
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if a, err := http.DefaultClient.Do(q); err == nil {
			a.Body.Close()
		}
	}()
	until := func(status int) {
		for c.post("/adapters", object{"name": "no-examples"}).Status != status {
			select {
			case <-t.Context().Done():
				t.Fatalf("no answer was %d", status)
			case <-time.After(time.Millisecond):
			}
		}
	}
	until(429)
	c.post("/adapters", object{"name": "no-examples"}).wantError(429, "", "rate_limit_exceeded")
	c.do("POST", "/adapters?name=jsonl", "{]", "Content-Type", "application/x-ndjson").wantError(400, "training_file", "invalid_training_file")
	for _, other := range []string{"ben", "carl"} {
		done, err := c.server.bodies.take(other, -1)
		if err != nil {
			t.Errorf("another tenant: %v", err)
			continue
		}
		done()
	}
	slow.CloseWithError(io.ErrUnexpectedEOF)
	<-ended
	until(400)
	c.post("/adapters", strings.Repeat(" ", 2000)).wantError(413, "", "too_large")
	for left := 1; left > 0; time.Sleep(time.Millisecond) { // an answer may come before its handler has ended
		c.server.bodies.mu.Lock()
		left = len(c.server.bodies.taken)
		c.server.bodies.mu.Unlock()
	}
}
