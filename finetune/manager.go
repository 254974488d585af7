package finetune

import (
	"context"
	"errors"
	"iter"
	"time"
)

// ListOptions selects jobs, newest first.
type ListOptions struct {
	After   string // id of the last job of the page before
	Limit   int    // default: 20
	Adapter string // only jobs that publish it
}

// Manager owns the jobs. Host work happens in Run; device work in Slice, on the engine's goroutine.
// A tenant sees only its own jobs ("" is adapters.DefaultTenant); adapters.AllTenants, for administrators, sees all.
type Manager struct{}

// Submit checks the spec, stores it with its examples and queues the job. Errors: *FieldError (also for an unknown parent),
// *ExamplesError (later, as the job's error, where Deferred), adapters.ErrExists, adapters.ErrRank, ErrBusy, ErrClosed. The job is durable
// when Submit returns.
func (m *Manager) Submit(ctx context.Context, spec JobSpec) (Job, error) {
	return Job{}, errors.ErrUnsupported
}

// Get returns a job, or ErrNotFound.
func (m *Manager) Get(ctx context.Context, tenant, id string) (Job, error) {
	return Job{}, errors.ErrUnsupported
}

// List returns a page of a tenant's jobs, and whether there are more.
func (m *Manager) List(ctx context.Context, tenant string, o ListOptions) ([]Job, bool, error) {
	return nil, false, errors.ErrUnsupported
}

// Cancel ends a job that is not final; nothing is published. ErrNotFound, ErrState.
func (m *Manager) Cancel(ctx context.Context, tenant, id string) (Job, error) {
	return Job{}, errors.ErrUnsupported
}

// Pause stops a queued or running job and returns when its checkpoint is durable. ErrNotFound, ErrState.
func (m *Manager) Pause(ctx context.Context, tenant, id string) (Job, error) {
	return Job{}, errors.ErrUnsupported
}

// Resume queues a paused job; it goes on from its checkpoint. ErrNotFound, ErrState.
func (m *Manager) Resume(ctx context.Context, tenant, id string) (Job, error) {
	return Job{}, errors.ErrUnsupported
}

// Events yields a job's events with Seq > after, waits for more while the job is not final, and ends after its last. An error
// (ErrNotFound, the context's, ErrClosed) ends it too.
func (m *Manager) Events(ctx context.Context, tenant, id string, after int64) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) { yield(Event{}, errors.ErrUnsupported) }
}

// Run does the host's part of all jobs (validation, checkpoints, publishing) until ctx ends; then it has checkpointed what runs.
func (m *Manager) Run(ctx context.Context) error { return errors.ErrUnsupported }

// Ready reports whether there is device work. With Slice it is infer.Background.
func (m *Manager) Ready() bool { return false }

// Slice does device work for about the budget: a few layers of one micro-batch, an optimizer update, or a token of a sample.
func (m *Manager) Slice(budget time.Duration) {}
