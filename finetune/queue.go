package finetune

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"bhive/adapters"
)

// Run does the host's part of all jobs (validation, checkpoints, publishing) until ctx ends; then it copies what runs into durable
// checkpoints, for which the engine must still run units. Jobs that were running when the process before ended go on.
func (m *Manager) Run(ctx context.Context) error {
	if err := m.adopt(ctx, true); err != nil {
		return err
	}
	tick := time.NewTicker(min(m.c.CheckpointEvery, m.c.TakeOver/4, 5*time.Second))
	defer tick.Stop()
	collected := time.Now()
	for {
		m.start(ctx)
		select {
		case <-m.signal:
			m.deliver()
			m.flush(ctx)
		case now := <-tick.C:
			m.tick(ctx, now)
			if now.Sub(collected) > gcEvery {
				collected = now
				if _, err := m.st.GC(ctx, gcGrace); err != nil && ctx.Err() == nil {
					m.log.Warn("collecting superseded checkpoints", "error", err)
				}
				if err := m.forget(ctx, now); err != nil && ctx.Err() == nil {
					m.log.Warn("removing old jobs", "error", err)
				}
				if err := m.adopt(ctx, false); err != nil && ctx.Err() == nil {
					m.log.Warn("looking for jobs of workers that are gone", "error", err)
				}
			}
		case <-ctx.Done():
			m.shutdown()
			m.workers.Wait()
			m.deliver()
			m.flush(context.WithoutCancel(ctx))
			return nil
		}
	}
}

// Superseded checkpoints are garbage in the store; a blob is safe for the grace until something refers to it.
const (
	gcEvery = 5 * time.Minute
	gcGrace = 15 * time.Minute
)

// forget removes the jobs that ended longest ago of tenants with many: whoever lists jobs reads them all.
func (m *Manager) forget(ctx context.Context, now time.Time) error {
	list, err := m.st.ListJobs(ctx, adapters.AllTenants, string(Succeeded), string(Failed), string(Cancelled))
	if err != nil {
		return err
	}
	kept := map[string]int{} // by tenant
	for _, r := range slices.Backward(list) {
		if r.Kind != jobKind {
			continue
		}
		if kept[r.Tenant]++; kept[r.Tenant] <= m.c.Ended || now.Sub(r.UpdatedAt) < m.c.Recent {
			continue
		}
		if err := m.st.DeleteJob(ctx, r.Tenant, r.ID); err != nil && !errors.Is(err, adapters.ErrNotFound) { // another worker was first
			return err
		}
	}
	return nil
}

func (m *Manager) deliver() {
	for {
		m.mu.Lock()
		inbox := m.inbox
		m.inbox = nil
		m.mu.Unlock()
		if len(inbox) == 0 {
			return
		}
		for _, f := range inbox {
			f()
		}
	}
}

// adopt takes up the jobs of the store that nobody works on. first says that the process has just begun: then those of our name are ours.
func (m *Manager) adopt(ctx context.Context, first bool) error {
	list, err := m.st.ListJobs(ctx, adapters.AllTenants, string(Queued), string(ValidatingFiles), string(Running), string(Paused))
	if err != nil {
		return fmt.Errorf("looking for unfinished jobs: %w", err)
	}
	for _, r := range list {
		if _, ok := m.jobs[r.ID]; ok || r.Kind != jobKind {
			continue
		}
		mine := r.Worker == m.c.Worker && first
		if !mine && r.Worker != "" && time.Since(r.Heartbeat) < m.c.TakeOver {
			continue
		}
		j, err := readJob(r)
		if err != nil {
			m.log.Error("reading a stored job", "job", r.ID, "error", err)
			continue
		}
		if b := m.d.Model.Basis; b == nil || j.data.Base != "" && j.data.Base != b.BaseHash {
			continue // a worker with its base model takes it up
		}
		m.insert(j)
		if j.public.State == Running || j.public.State == ValidatingFiles {
			m.setState(ctx, j, Queued, "goes on after a restart")
		} else if err := m.save(ctx, j); err != nil {
			m.log.Warn("claiming a job", "job", j.public.ID, "error", err)
		}
	}
	return nil
}

func (m *Manager) insert(j *job) {
	m.mu.Lock()
	m.jobs[j.public.ID] = j
	m.mu.Unlock()
}

// admit refuses a job for which there is no place, or whose name another is about to take.
func (m *Manager) admit(j *job) error {
	waiting, unfinished := map[string]int{}, 0 // by tenant; the tenant's
	all := 0
	for _, o := range m.jobs {
		if o.public.State == Queued {
			waiting[o.public.Tenant]++
			all++
		}
		if o.public.Tenant == j.public.Tenant {
			unfinished++
		}
		same := o.public.Tenant == j.public.Tenant && o.public.Spec.Name == j.public.Spec.Name
		if same && !o.continues() && !j.continues() {
			return fmt.Errorf("%w: %w", fieldErrorf("name", "job %s is about to publish %q", o.public.ID, j.public.Spec.Name), adapters.ErrExists)
		}
	}
	if unfinished >= m.c.Unfinished {
		return fmt.Errorf("%w: %d of the tenant's have not ended", ErrBusy, unfinished)
	}
	own := waiting[j.public.Tenant]
	waiting[j.public.Tenant] = own + 1
	if all >= m.c.Waiting && own >= m.c.Waiting/len(waiting) {
		return fmt.Errorf("%w: %d are waiting, %d of them the tenant's", ErrBusy, all, own)
	}
	return nil
}

// create makes a job durable and queues it.
func (m *Manager) create(ctx context.Context, j *job) error {
	if err := m.admit(j); err != nil {
		return err
	}
	r, err := m.st.CreateJob(ctx, j.public.Tenant, j.record(j.public, m.c.Worker), j.event(Event{Type: EventState, State: Queued, Message: "queued"}))
	if err != nil {
		return fmt.Errorf("storing job %s: %w", j.public.ID, err)
	}
	j.rev, j.saved = r.Rev, time.Now()
	m.insert(j)
	m.announce()
	return nil
}

// continues says whether the job publishes the next version of its parent.
func (j *job) continues() bool {
	r, err := adapters.ParseRef(j.spec.Parent)
	return j.spec.Parent != "" && err == nil && r.Parts[0].Name == j.spec.Name
}

func (m *Manager) list() []*job {
	out := make([]*job, 0, len(m.jobs))
	for _, j := range m.jobs {
		out = append(out, j)
	}
	return out
}

// begin reads a job's examples, beside everything else, and then asks for a lane.
func (m *Manager) begin(ctx context.Context, j *job) {
	j.preparing = true
	m.setState(ctx, j, ValidatingFiles, "reading the examples")
	p := preparation{spec: j.spec, data: j.data, id: j.public.ID}
	reading, stop := context.WithCancel(ctx)
	j.stopReading = stop
	m.workers.Go(func() {
		err := m.prepare(reading, &p)
		stop()
		m.post(func() {
			j.preparing = false
			switch {
			case j.stop != nil: // paused or cancelled meanwhile
				j.stop(ctx)
			case ctx.Err() != nil: // goes on at the next start
			case errors.Is(err, adapters.ErrStoreUnavailable):
				j.blocked = true
				m.setState(ctx, j, Queued, "waits for the store")
				m.retry(ctx, j, "reading a job's examples", err, func() { j.blocked = false })
			case err != nil:
				m.fail(ctx, j, err)
			default:
				m.join(ctx, j, p)
			}
		})
	})
}

// tick checkpoints what runs and says that we live.
func (m *Manager) tick(ctx context.Context, now time.Time) {
	for _, j := range m.jobs {
		if !j.busy() && now.Sub(j.saved) < m.c.TakeOver/2 { // what only waits is written less often, before others take it for a dead worker's
			continue
		}
		if j.public.State == Running && now.Sub(j.checkpointed) >= m.c.CheckpointEvery && !j.saving && j.lane != nil {
			j.saving = true
			lane := j.lane
			m.device.command(m, func() {
				lane.checkpoint(func(c *Checkpoint, err error) {
					m.post(func() {
						j.saving = false
						if j.public.State != Running || err != nil { // the device's failure ends the job
							return
						}
						if err := m.saveCheckpoint(ctx, j, c); err != nil {
							m.log.Warn("writing a checkpoint", "job", j.public.ID, "error", err)
						}
					})
				})
			})
		} else if err := m.save(ctx, j); err != nil {
			m.log.Warn("renewing the claim on a job", "job", j.public.ID, "error", err)
		}
	}
}

// shutdown writes a checkpoint of everything that runs.
func (m *Manager) shutdown() {
	ctx, cancel := context.WithTimeout(context.Background(), m.c.Shutdown)
	defer cancel()
	for _, j := range m.jobs {
		if j.lane == nil {
			continue
		}
		m.leave(j, func(c *Checkpoint) {
			if c == nil || j.public.State.Final() {
				return
			}
			if err := m.saveCheckpoint(ctx, j, c); err != nil {
				m.log.Error("writing the last checkpoint", "job", j.public.ID, "error", err)
			}
		})
	}
	for m.leaving > 0 { // those that are being paused too
		select {
		case <-m.signal:
			m.deliver()
		case <-ctx.Done():
			m.log.Error("the engine did not stop training in time; jobs will go on from older checkpoints", "jobs", m.leaving)
			return
		}
	}
}

// cancel ends a job.
func (m *Manager) cancel(j *job, done func(error)) {
	end := func(ctx context.Context, _ *Checkpoint) error {
		return m.finish(ctx, j, Cancelled, Event{Type: EventState, State: Cancelled, Message: "cancelled"})
	}
	if j.finishing { // its B waits for the store
		done(end(context.Background(), nil))
		return
	}
	m.halt(j, end, done)
}

// pause stops a job where it is.
func (m *Manager) pause(j *job, done func(error)) {
	if j.public.State == Paused {
		done(fmt.Errorf("%w: it is paused already", ErrState))
		return
	}
	m.halt(j, func(ctx context.Context, c *Checkpoint) error { return m.setAside(ctx, j, c, Paused, "paused") }, done)
}

// setAside stores a job that has left the device, to go on from there later.
func (m *Manager) setAside(ctx context.Context, j *job, c *Checkpoint, s State, message string) error {
	if c != nil {
		if err := m.saveCheckpoint(ctx, j, c); err != nil {
			m.log.Error("writing a checkpoint of a job that leaves", "job", j.public.ID, "error", err)
			return err
		}
	}
	return m.commitState(ctx, j, s, fmt.Sprintf("%s at step %d", message, j.public.Progress.Step))
}

// resume queues a paused job.
func (m *Manager) resume(j *job, done func(error)) {
	if j.public.State != Paused {
		done(fmt.Errorf("%w: it is %s, not paused", ErrState, j.public.State))
		return
	}
	done(m.commitState(context.Background(), j, Queued, "resumed"))
}

// halt takes a job off the device, or out of its preparation, and then calls then with its checkpoint where it had a lane. Where then fails the job goes on.
func (m *Manager) halt(j *job, then func(context.Context, *Checkpoint) error, done func(error)) {
	end := func(ctx context.Context, c *Checkpoint) {
		j.stop = nil
		defer func() {
			after := j.stopped
			j.stopped = nil
			for _, f := range after {
				f()
			}
		}()
		if j.public.State.Final() { // it has failed meanwhile
			done(fmt.Errorf("%w: it is %s", ErrState, j.public.State))
			return
		}
		err := then(ctx, c)
		if s := j.public.State; err != nil && m.jobs[j.public.ID] == j && (s == Running || s == ValidatingFiles) {
			m.setState(ctx, j, Queued, "goes on: it could not be stopped")
		}
		done(err)
	}
	switch {
	case j.finishing:
		done(fmt.Errorf("%w: it is about to end", ErrState))
	case j.preparing || j.joining:
		j.stop = func(ctx context.Context) { end(ctx, nil) }
		j.stopReading()
	case j.lane != nil:
		j.stop = func(context.Context) {}
		m.leave(j, func(c *Checkpoint) { end(context.Background(), c) })
	default:
		end(context.Background(), nil)
	}
}

var errLost = errors.New("another worker has the job")
