package finetune

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"bhive/adapters"
)

// ListOptions selects jobs, newest first.
type ListOptions struct {
	After   string // id of the last job of the page before
	Limit   int    // default: 20
	Adapter string // only jobs that publish it
}

// Manager owns the jobs. Their states change on the goroutine of Run alone; device work happens in Slice, on the engine's.
// A tenant sees only its own jobs ("" is adapters.DefaultTenant); adapters.AllTenants, for administrators, sees all.
type Manager struct {
	noTraining error // why the device cannot train, or nil; asked once, since the backend belongs to the engine's goroutine

	c   Config
	d   Deps
	st  adapters.Store
	log *slog.Logger

	mu      sync.Mutex
	jobs    map[string]*job // those that are not final
	inbox   []func()        // for Run's goroutine
	changed chan struct{}   // closed and replaced at every new event
	closed  bool

	signal  chan struct{} // the inbox has something
	stopped chan struct{} // closed by Close
	workers sync.WaitGroup
	leaving int // lanes on their way back; Run's goroutine's

	device device
	ready  atomic.Bool
}

// New makes a manager; Run starts it.
func New(c Config, d Deps) (*Manager, error) {
	c.SetDefaults()
	if err := c.Validate(); err != nil {
		return nil, err
	}
	c.Trainer.SetDefaults(d.Model.Config.MaxPositions)
	if err := c.Trainer.Validate(); err != nil {
		return nil, err
	}
	if d.Log == nil {
		d.Log = slog.Default()
	}
	if d.Wake == nil {
		d.Wake = func() {}
	}
	var noTraining error
	if info := d.Model.Backend.Info(); info.NoTraining {
		noTraining = fmt.Errorf("%w (%s)", ErrDevice, info.Device)
	}
	return &Manager{noTraining: noTraining, c: c, d: d, st: d.Registry.Store, log: d.Log, jobs: map[string]*job{}, changed: make(chan struct{}),
		signal: make(chan struct{}, 1), stopped: make(chan struct{})}, nil
}

// post leaves work for Run's goroutine.
func (m *Manager) post(f func()) {
	m.mu.Lock()
	m.inbox = append(m.inbox, f)
	m.mu.Unlock()
	select {
	case m.signal <- struct{}{}:
	default:
	}
}

// do runs f on Run's goroutine and waits for what it sends.
func (m *Manager) do(ctx context.Context, f func(done func(error))) error {
	result := make(chan error, 1)
	m.post(func() { f(func(err error) { result <- err }) })
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-m.stopped:
		return ErrClosed
	}
}

// Close ends all waiting and frees the trainer. Run must have returned, and the engine stopped. Idempotent.
func (m *Manager) Close() error {
	m.mu.Lock()
	first := !m.closed
	m.closed = true
	m.mu.Unlock()
	if first {
		close(m.stopped)
		m.device.close()
	}
	return nil
}

func tenantOf(t string) string {
	if t == "" {
		return adapters.DefaultTenant
	}
	return t
}

// Get returns a job, or ErrNotFound.
func (m *Manager) Get(ctx context.Context, tenant, id string) (Job, error) {
	m.mu.Lock()
	if j, ok := m.jobs[id]; ok {
		p := j.public
		m.mu.Unlock()
		if tenant != adapters.AllTenants && p.Tenant != tenantOf(tenant) {
			return Job{}, fmt.Errorf("%w: %q", ErrNotFound, firstRunes(id, 80))
		}
		return p, nil
	}
	m.mu.Unlock()
	if tenant == adapters.AllTenants {
		list, err := m.st.ListJobs(ctx, tenant)
		if err != nil {
			return Job{}, fmt.Errorf("looking for job %q: %w", firstRunes(id, 80), err)
		}
		for _, r := range list {
			if r.ID == id && r.Kind == jobKind {
				return publicOf(r)
			}
		}
		return Job{}, fmt.Errorf("%w: %q", ErrNotFound, firstRunes(id, 80))
	}
	r, err := m.st.GetJob(ctx, tenant, id)
	if errors.Is(err, adapters.ErrNotFound) || errors.Is(err, adapters.ErrInvalidName) || err == nil && r.Kind != jobKind {
		return Job{}, fmt.Errorf("%w: %q", ErrNotFound, firstRunes(id, 80))
	}
	if err != nil {
		return Job{}, fmt.Errorf("reading job %q: %w", id, err)
	}
	return publicOf(r)
}

// List returns a page of a tenant's jobs, and whether there are more.
func (m *Manager) List(ctx context.Context, tenant string, o ListOptions) ([]Job, bool, error) {
	setDefault(&o.Limit, 20)
	list, err := m.st.ListJobs(ctx, tenant)
	if err != nil {
		return nil, false, fmt.Errorf("listing jobs: %w", err)
	}
	slices.Reverse(list)
	out := []Job{}
	found := o.After == ""
	for _, r := range list {
		if r.Kind != jobKind {
			continue
		}
		if !found {
			found = r.ID == o.After
			continue
		}
		j, err := publicOf(r)
		if err != nil {
			return nil, false, err
		}
		m.mu.Lock()
		if live, ok := m.jobs[r.ID]; ok {
			j = live.public
		}
		m.mu.Unlock()
		if o.Adapter != "" && j.Spec.Name != o.Adapter {
			continue
		}
		if len(out) == o.Limit {
			return out, true, nil
		}
		out = append(out, j)
	}
	return out, false, nil
}

// Cancel ends a job that is not final; nothing is published. ErrNotFound, ErrState.
func (m *Manager) Cancel(ctx context.Context, tenant, id string) (Job, error) {
	return m.change(ctx, tenant, id, m.cancel)
}

// Pause stops a queued or running job and returns when its checkpoint is durable. ErrNotFound, ErrState.
func (m *Manager) Pause(ctx context.Context, tenant, id string) (Job, error) {
	return m.change(ctx, tenant, id, m.pause)
}

// Resume queues a paused job; it goes on from its checkpoint. ErrNotFound, ErrState.
func (m *Manager) Resume(ctx context.Context, tenant, id string) (Job, error) {
	return m.change(ctx, tenant, id, m.resume)
}

func (m *Manager) change(ctx context.Context, tenant, id string, f func(*job, func(error))) (Job, error) {
	p, err := m.Get(ctx, tenant, id)
	if err != nil {
		return Job{}, err
	}
	if err := m.do(ctx, func(done func(error)) { m.apply(p, f, done) }); err != nil {
		return Job{}, err
	}
	return m.Get(ctx, tenant, id)
}

// apply changes a job, when it has been stopped where it is being.
func (m *Manager) apply(p Job, f func(*job, func(error)), done func(error)) {
	j, ok := m.jobs[p.ID]
	switch {
	case ok && j.stop != nil:
		j.stopped = append(j.stopped, func() { m.apply(j.public, f, done) })
	case ok:
		f(j, done)
	case p.State.Final():
		done(fmt.Errorf("%w: it is %s", ErrState, p.State))
	default:
		done(fmt.Errorf("%w: it is %s, with another worker or for another base model", ErrState, p.State))
	}
}

// Events yields a job's events with Seq > after, waits for more while the job is not final, and ends after its last. An error
// (ErrNotFound, the context's, ErrClosed) ends it too.
func (m *Manager) Events(ctx context.Context, tenant, id string, after int64) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		for {
			m.mu.Lock()
			changed := m.changed
			m.mu.Unlock()
			j, err := m.Get(ctx, tenant, id)
			if err != nil {
				yield(Event{}, err)
				return
			}
			list, err := m.st.Events(ctx, j.Tenant, id, after, 256)
			if err != nil {
				yield(Event{}, fmt.Errorf("reading the events of job %q: %w", id, err))
				return
			}
			for _, e := range list {
				after = e.Seq
				out := eventOf(e)
				if out.Result != nil { // the version's number is the store's
					if j, err = m.Get(ctx, tenant, id); err == nil && j.Result != nil {
						out.Result = j.Result
					}
				}
				if !yield(out, nil) {
					return
				}
			}
			if len(list) > 0 {
				continue
			}
			if j.State.Final() {
				return
			}
			select {
			case <-changed:
			case <-time.After(2 * time.Second): // another worker's job
			case <-ctx.Done():
				yield(Event{}, ctx.Err())
				return
			case <-m.stopped:
				yield(Event{}, ErrClosed)
				return
			}
		}
	}
}

// Log returns at most limit of a job's events so far with Seq < before (0: of all), newest first and without waiting, and whether there are older
// ones. ErrNotFound.
func (m *Manager) Log(ctx context.Context, tenant, id string, before int64, limit int) (page []Event, more bool, err error) {
	j, err := m.Get(ctx, tenant, id)
	if err != nil {
		return nil, false, err
	}
	last, err := m.st.LastEvent(ctx, j.Tenant, id)
	if err != nil {
		return nil, false, fmt.Errorf("reading the events of job %q: %w", id, err)
	}
	if before > 0 {
		last = min(last, before-1)
	}
	if last == 0 {
		return nil, false, nil
	}
	after := max(0, last-int64(limit))
	list, err := m.st.Events(ctx, j.Tenant, id, after, int(last-after))
	if err != nil {
		return nil, false, fmt.Errorf("reading the events of job %q: %w", id, err)
	}
	for _, e := range slices.Backward(list) {
		out := eventOf(e)
		if out.Result != nil && j.Result != nil { // the version's number is the store's
			out.Result = j.Result
		}
		page = append(page, out)
	}
	return page, after > 0, nil
}
