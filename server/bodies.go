package server

import (
	"net/http"
	"sync"
)

// bodies counts what the tenants' JSON bodies with examples take, which are in memory until their job is stored.
type bodies struct {
	most int64 // bytes of a tenant at once

	mu    sync.Mutex
	taken map[string]int64 // by tenant
}

// take counts a body in before it is read, or refuses it; done counts it out.
func (b *bodies) take(tenant string, bytes int64) (done func(), err error) {
	if bytes < 0 || bytes > b.most { // not said, or said to be too large: no more is read
		bytes = b.most
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.taken[tenant]+bytes > b.most {
		e := quotaExceeded("bytes of JSON bodies with examples at once", b.most, 1)
		e.Message += "; JSONL has no such limit"
		return nil, e
	}
	b.taken[tenant] += bytes
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.taken[tenant] -= bytes; b.taken[tenant] == 0 {
			delete(b.taken, tenant)
		}
	}, nil
}

// withExamples is a handler of a body with examples.
func (s *Server) withExamples(h func(http.ResponseWriter, *http.Request) error) func(http.ResponseWriter, *http.Request) error {
	return func(w http.ResponseWriter, r *http.Request) error {
		if inMemory(mediaType(r)) {
			done, err := s.bodies.take(tenant(r.Context()), r.ContentLength)
			if err != nil {
				return err
			}
			defer done()
		}
		return h(w, r)
	}
}
