package server

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"slices"
	"sync"
	"time"

	"bhive/adapters"
	"bhive/finetune"
	"bhive/infer"
)

// Quotas bound what one tenant takes. 0 is no bound. Requests and tokens are counted by each server for itself, the others over the registry.
type Quotas struct {
	Requests             int   // completions and chats that run or wait at once
	TokensPerMinute      int64 // of prompts and of what is generated
	TrainingTokensPerDay int64 // that jobs of the last 24 hours have gone through
	Adapters             int   // names
	Bytes                int64 // of adapters and files
}

// quotaExceeded is what a tenant is told that has no more; seconds ≥ 1 says when to ask again, 0 that time does not help.
func quotaExceeded(what string, limit int64, seconds int) *apiError {
	e := &apiError{Status: http.StatusTooManyRequests, Type: "rate_limit_error", Code: "rate_limit_exceeded", Retry: seconds, Message: fmt.Sprintf("the tenant's limit of %d %s is reached", limit, what)}
	if seconds == 0 {
		e.Type, e.Code = "insufficient_quota", "insufficient_quota"
	}
	return e
}

// meter counts what tenants take of a server's time.
type meter struct {
	quotas Quotas
	now    func() time.Time

	mu      sync.Mutex
	tenants map[string]*taken // those that take something now
}

// taken is what one tenant takes.
type taken struct {
	requests int
	tokens   float64 // of the minute's, as a bucket that empties steadily
	at       time.Time
}

func newMeter(q Quotas) *meter { return &meter{quotas: q, now: time.Now, tenants: map[string]*taken{}} }

// drain brings a bucket up to date.
func (m *meter) drain(t *taken, now time.Time) {
	t.tokens = max(0, t.tokens-now.Sub(t.at).Minutes()*float64(m.quotas.TokensPerMinute))
	t.at = now
}

// enter counts a request and its prompt's tokens in, or refuses it. The caller tells leave once what was generated, less the tokens of
// prompts that were refused after all.
func (m *meter) enter(tenant string, prompt int) (leave func(generated int), err error) {
	if m.quotas.Requests == 0 && m.quotas.TokensPerMinute == 0 {
		return func(int) {}, nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.now()
	t := m.tenants[tenant]
	if t == nil {
		t = &taken{at: now}
		m.tenants[tenant] = t
	}
	m.drain(t, now)
	switch {
	case m.quotas.Requests > 0 && t.requests >= m.quotas.Requests:
		return nil, quotaExceeded("requests at once", int64(m.quotas.Requests), 1)
	case m.quotas.TokensPerMinute > 0 && t.tokens >= float64(m.quotas.TokensPerMinute):
		over := t.tokens - float64(m.quotas.TokensPerMinute)
		return nil, quotaExceeded("tokens a minute", m.quotas.TokensPerMinute, 1+int(math.Ceil(60*over/float64(m.quotas.TokensPerMinute))))
	}
	t.requests++
	t.tokens += float64(prompt)
	return func(generated int) {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.drain(t, m.now())
		t.requests--
		t.tokens = max(0, t.tokens+float64(generated)) // of what was refused, some may have drained
		m.forget()
	}, nil
}

// forget drops tenants that take nothing; their number is bounded by it.
func (m *meter) forget() {
	for name, t := range m.tenants {
		if m.drain(t, m.now()); t.requests == 0 && (t.tokens == 0 || m.quotas.TokensPerMinute == 0) {
			delete(m.tenants, name)
		}
	}
}

// enterRequests is enter for the prompts of one request.
func (s *Server) enterRequests(ctx context.Context, requests []infer.Request) (leave func(int), err error) {
	tokens := 0
	for _, r := range requests {
		tokens += len(r.Prompt)
	}
	return s.meter.enter(tenant(ctx), tokens)
}

// claim is what a request is about to keep: a name, or a file's bytes.
type claim struct {
	name  string
	bytes int64
}

// claims are those of the requests at work, which the store does not have yet: as many as come at once share what is left.
type claims struct {
	mu      sync.Mutex
	tenants map[string][]*claim // oldest first
}

// add takes a claim in and gives those before it; done takes it out, once the store has what was claimed, or never will.
func (c *claims) add(tenant string, one claim) (before []*claim, done func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	before = slices.Clone(c.tenants[tenant])
	c.tenants[tenant] = append(c.tenants[tenant], &one)
	return before, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.tenants[tenant] = slices.DeleteFunc(c.tenants[tenant], func(o *claim) bool { return o == &one })
		if len(c.tenants[tenant]) == 0 {
			delete(c.tenants, tenant)
		}
	}
}

// mayKeep refuses, where the tenant keeps as much as it may, a new adapter of that name; "" is a file of so many bytes. done is to be called when it
// is stored, or when it will not be.
func (s *Server) mayKeep(ctx context.Context, name string, bytes int64) (done func(), err error) {
	if q := s.config.Quotas; q.Adapters == 0 && q.Bytes == 0 {
		return func() {}, nil
	}
	before, done := s.claims.add(tenant(ctx), claim{name, bytes}) // before the store is read: what is claimed no longer is there then
	if err := s.roomFor(ctx, name, before); err != nil {
		done()
		return nil, err
	}
	return done, nil
}

// names are those of a tenant's adapters (from the store's list) and of the jobs that will publish one. A job that has ended has left a version, or
// nothing that counts.
func (s *Server) names(ctx context.Context, all []adapters.Adapter) (map[named]bool, error) {
	names := map[named]bool{}
	for _, a := range all {
		names[named{a.Tenant, a.Name}] = true
	}
	jobs, err := s.d.Store.ListJobs(ctx, tenant(ctx), unfinished...)
	if err != nil {
		return nil, err
	}
	for _, record := range jobs {
		j, err := s.d.Jobs.Get(ctx, record.Tenant, record.ID)
		if errors.Is(err, finetune.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		names[named{record.Tenant, j.Spec.Name}] = true
	}
	return names, nil
}

func (s *Server) roomFor(ctx context.Context, name string, claimed []*claim) error {
	q := s.config.Quotas
	all, err := s.d.Store.List(ctx, tenant(ctx))
	if err != nil {
		return err
	}
	bytes := int64(0)
	for _, a := range all {
		bytes += a.Bytes
	}
	if q.Adapters > 0 && name != "" {
		names, err := s.names(ctx, all)
		if err != nil {
			return err
		}
		for _, c := range claimed {
			if c.name != "" {
				names[named{tenant(ctx), c.name}] = true
			}
		}
		if !names[named{tenant(ctx), name}] && len(names) >= q.Adapters {
			return quotaExceeded("adapters", int64(q.Adapters), 0)
		}
	}
	if q.Bytes == 0 {
		return nil
	}
	files, err := s.d.Store.ListFiles(ctx, tenant(ctx))
	if err != nil {
		return err
	}
	for _, f := range files {
		bytes += f.Bytes
	}
	for _, c := range claimed {
		bytes += c.bytes
	}
	if bytes >= q.Bytes {
		return quotaExceeded("bytes of adapters and files", q.Bytes, 0)
	}
	return nil
}

// mayTrain refuses a job where those of the last day have gone through all the tokens that the tenant may train on.
func (s *Server) mayTrain(ctx context.Context) error {
	limit := s.config.Quotas.TrainingTokensPerDay
	if limit == 0 {
		return nil
	}
	const day = 24 * time.Hour
	now, tokens, oldest := time.Now(), int64(0), time.Time{}
	jobs, _, err := s.d.Jobs.List(ctx, tenant(ctx), finetune.ListOptions{Limit: math.MaxInt})
	if err != nil {
		return err
	}
	for _, j := range jobs {
		if j.Finished == nil || now.Sub(*j.Finished) < day {
			tokens += j.Progress.Tokens
			if j.Finished != nil && (oldest.IsZero() || j.Finished.Before(oldest)) {
				oldest = *j.Finished
			}
		}
	}
	if tokens < limit {
		return nil
	}
	wait := time.Hour
	if !oldest.IsZero() {
		wait = max(time.Second, oldest.Add(day).Sub(now))
	}
	return quotaExceeded("training tokens a day", limit, int(wait.Seconds()))
}
