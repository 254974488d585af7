package finetune

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"time"

	"bhive/adapters"
)

// jobKind marks our records among the store's jobs.
const jobKind = "finetune"

// job is a job that is not final. Only Run's goroutine changes it; public is read by others, under the manager's lock.
type job struct {
	spec   JobSpec // with all defaults
	public Job
	data   jobData
	rev    int64 // of the store's record

	lane         *Lane // while it has one; its methods are the engine goroutine's
	options      LaneOptions
	preparing    bool                  // its examples are being read
	stopReading  context.CancelFunc    // of them
	joining      bool                  // it waits for a lane
	ending       bool                  // its last step is done
	finishing    bool                  // it has come to its end and is being published, while its B comes from the device
	blocked      bool                  // there was no memory, until another job leaves; or no store, for a moment
	saving       bool                  // a checkpoint is under way
	pending      []json.RawMessage     // events to be stored
	stop         func(context.Context) // what to do instead of going on
	stopped      []func()              // what waits for that
	began        time.Time             // to have its lane
	moved        bool                  // it has done a step since
	waits        time.Time             // for a lane since, in the order of those of its tenant that do; zero: since it was created
	saved        time.Time             // its record, by us
	checkpointed time.Time
	reported     time.Time // of the last progress event
	stepped      time.Time // of the last step
}

// jobData is what the store keeps of a job.
type jobData struct {
	Job        Job    `json:"job"`
	Param      string `json:"param"`
	Training   string `json:"training"`             // blob of the examples
	Validation string `json:"validation,omitempty"` // blob
	Checkpoint string `json:"checkpoint,omitempty"` // blob
	Parent     string `json:"parent,omitempty"`     // name@number that it went on from
	ParentNo   int    `json:"parent_number,omitempty"`
	Base       string `json:"base,omitempty"` // hash of the base model
	Rows       string `json:"rows,omitempty"` // digest of the rows of A that it trains over
}

// busy says whether the job holds, or is about to hold, a lane.
func (j *job) busy() bool { return j.preparing || j.joining || j.lane != nil || j.finishing }

func (j *job) event(e Event) json.RawMessage {
	if e.Level == "" {
		e.Level = "info"
	}
	b, err := json.Marshal(e)
	if err != nil {
		panic("finetune: an event that is not JSON: " + err.Error())
	}
	return b
}

// record is the store's record of the job with that public part.
func (j *job) record(public Job, worker string) adapters.Job {
	j.data.Job = public
	data, err := json.Marshal(j.data)
	if err != nil {
		panic("finetune: a job that is not JSON: " + err.Error())
	}
	r := adapters.Job{Tenant: public.Tenant, ID: public.ID, Kind: jobKind, State: string(public.State), Worker: worker,
		Heartbeat: time.Now().UTC(), Data: data, Rev: j.rev}
	if !public.State.Final() {
		for _, b := range []string{j.data.Training, j.data.Validation, j.data.Checkpoint} {
			if b != "" {
				r.Blobs = append(r.Blobs, b)
			}
		}
	}
	return r
}

func readJob(r adapters.Job) (*job, error) {
	j := &job{rev: r.Rev}
	if err := json.Unmarshal(r.Data, &j.data); err != nil {
		return nil, fmt.Errorf("job %s: %w: %w", r.ID, adapters.ErrCorrupt, err)
	}
	j.public = j.data.Job
	j.public.State = State(r.State)
	j.spec = j.public.Spec
	j.spec.Tenant = r.Tenant
	if ref, err := adapters.ParseRef(r.Published); err == nil && r.Published != "" && j.public.Result != nil {
		j.public.Result.Version = ref.Parts[0].Number // which only the store knew
	}
	return j, nil
}

func publicOf(r adapters.Job) (Job, error) {
	j, err := readJob(r)
	if err != nil {
		return Job{}, err
	}
	return j.public, nil
}

func eventOf(e adapters.Event) Event {
	var out Event
	if err := json.Unmarshal(e.Data, &out); err != nil {
		out = Event{Type: EventWarning, Level: "warn", Message: "an event that cannot be read"}
	}
	if out.Seq = e.Seq; out.Time.IsZero() {
		out.Time = e.At
	}
	return out
}

// update changes the public part.
func (m *Manager) update(j *job, f func(*Job)) {
	m.mu.Lock()
	f(&j.public)
	m.mu.Unlock()
}

// announce wakes those who wait for events.
func (m *Manager) announce() {
	m.mu.Lock()
	close(m.changed)
	m.changed = make(chan struct{})
	m.mu.Unlock()
}

// save writes a job's record and events in one.
func (m *Manager) save(ctx context.Context, j *job, events ...Event) error {
	return m.saveAs(ctx, j, j.public, events...)
}

func (m *Manager) saveAs(ctx context.Context, j *job, public Job, events ...Event) error {
	raw := j.pending
	for _, e := range events {
		raw = append(raw, j.event(e))
	}
	r, err := m.st.UpdateJob(ctx, j.public.Tenant, j.record(public, m.c.Worker), raw...)
	if errors.Is(err, adapters.ErrConflict) || errors.Is(err, adapters.ErrNotFound) {
		m.abandon(j)
		return fmt.Errorf("storing job %s: %w: %w", j.public.ID, errLost, err)
	}
	if err != nil {
		return fmt.Errorf("storing job %s: %w", j.public.ID, err)
	}
	j.rev, j.saved, j.pending = r.Rev, time.Now(), nil
	if len(raw) > 0 {
		m.announce()
	}
	return nil
}

// abandon forgets a job that is no longer ours.
func (m *Manager) abandon(j *job) {
	if j.lane != nil {
		m.leave(j, func(*Checkpoint) {})
	}
	m.mu.Lock()
	delete(m.jobs, j.public.ID)
	m.mu.Unlock()
	m.announce()
	m.unblock()
}

// append adds events to a job's log at the end of the delivery under way, or with the next change of its record.
func (m *Manager) append(j *job, events ...Event) {
	now := time.Now().UTC()
	for _, e := range events {
		if e.Time.IsZero() {
			e.Time = now
		}
		j.pending = append(j.pending, j.event(e))
	}
}

// flush stores the events that wait.
func (m *Manager) flush(ctx context.Context) {
	for _, j := range m.jobs {
		if len(j.pending) == 0 || j.ending && j.lane != nil { // they go with what it publishes, in one
			continue
		}
		if _, err := m.st.AppendEvents(ctx, j.public.Tenant, j.public.ID, j.pending...); err != nil {
			m.log.Warn("storing events", "job", j.public.ID, "error", err)
			j.pending = j.pending[max(0, len(j.pending)-maxPending):]
			continue
		}
		j.pending = nil
		m.announce()
	}
}

// maxPending events of a job are kept while the store is away.
const maxPending = 1000

// setState moves a job to a state that is not final. Where the store cannot be written the job goes on; its record follows later.
func (m *Manager) setState(ctx context.Context, j *job, s State, message string) {
	m.update(j, func(p *Job) {
		p.State = s
		if s == Running && p.Started == nil {
			now := time.Now().UTC()
			p.Started = &now
		}
	})
	if err := m.save(ctx, j, Event{Type: EventState, State: s, Message: message}); err != nil {
		m.log.Warn("storing a job's state", "job", j.public.ID, "state", s, "error", err)
	}
}

// commitState moves a job to a state that is not final and that somebody has asked for. On an error it is in the state that it was in.
func (m *Manager) commitState(ctx context.Context, j *job, s State, message string) error {
	public := j.public
	public.State = s
	if err := m.saveAs(ctx, j, public, Event{Type: EventState, State: s, Message: message}); err != nil {
		return err
	}
	m.update(j, func(p *Job) { p.State = s })
	return nil
}

// finish moves a job to a final state.
func (m *Manager) finish(ctx context.Context, j *job, s State, events ...Event) error {
	now := time.Now().UTC()
	public := j.public // nobody sees the end before it is durable
	public.State, public.Finished = s, &now
	if err := m.saveAs(ctx, j, public, events...); err != nil {
		return err
	}
	m.retire(j, public)
	return nil
}

// retire forgets a job that is final in the store. What was under way for it sees that it is.
func (m *Manager) retire(j *job, public Job) {
	m.mu.Lock()
	j.public = public
	delete(m.jobs, j.public.ID)
	m.mu.Unlock()
	m.announce()
	m.unblock()
}

// fail ends a job with an error.
func (m *Manager) fail(ctx context.Context, j *job, err error) {
	e := &JobError{Code: "internal", Message: err.Error()}
	var field *FieldError
	var examples *ExamplesError
	switch {
	case errors.As(err, &examples):
		e.Code, e.Param, e.Lines = "invalid_training_file", examples.Param, examples.Lines
		if examples.Param == "validation_file" {
			e.Code = "invalid_validation_file"
		}
	case errors.Is(err, ErrDiverged):
		e.Code = "diverged"
	case errors.As(err, &field):
		e.Code, e.Param = "invalid_field", field.Field
	case errors.Is(err, adapters.ErrExists), errors.Is(err, adapters.ErrConflict):
		e.Code = "already_exists"
	}
	m.update(j, func(p *Job) { p.Error = e })
	if away := m.finish(ctx, j, Failed, Event{Type: EventError, Level: "error", Message: e.Message, Error: e},
		Event{Type: EventState, Level: "error", State: Failed, Message: "failed"}); away != nil && !errors.Is(away, errLost) {
		m.retry(ctx, j, "storing a failure", away, func() { m.fail(ctx, j, err) })
	}
}

// retry does something again later, because the store is away, unless the job has ended by then.
func (m *Manager) retry(ctx context.Context, j *job, what string, err error, f func()) {
	m.log.Warn(what, "job", j.public.ID, "error", err)
	m.workers.Go(func() {
		select {
		case <-time.After(2 * time.Second):
			m.post(func() {
				if m.jobs[j.public.ID] == j {
					f()
				}
			})
		case <-ctx.Done():
		case <-m.stopped:
		}
	})
}

// saveCheckpoint makes a checkpoint durable.
func (m *Manager) saveCheckpoint(ctx context.Context, j *job, c *Checkpoint) error {
	r, w := io.Pipe()
	go func() { w.CloseWithError(c.Encode(w, j.public.ID)) }()
	blob, err := m.st.PutBlob(ctx, j.public.Tenant, r)
	r.CloseWithError(io.ErrClosedPipe)
	if err != nil {
		return fmt.Errorf("storing the checkpoint of job %s: %w", j.public.ID, err)
	}
	j.data.Checkpoint = blob.SHA256
	j.checkpointed = time.Now()
	return m.save(ctx, j, Event{Type: EventCheckpoint, Message: fmt.Sprintf("checkpoint at step %d", c.Step)})
}

func (m *Manager) loadCheckpoint(ctx context.Context, p *preparation, n int) (*Checkpoint, error) {
	blob, err := m.st.OpenBlob(ctx, p.spec.Tenant, p.data.Checkpoint)
	if err != nil {
		return nil, fmt.Errorf("opening the checkpoint of job %s: %w", p.id, err)
	}
	defer blob.Close()
	raw := make([]byte, blob.Size())
	if _, err := blob.ReadAt(raw, 0); err != nil && err != io.EOF {
		return nil, fmt.Errorf("reading the checkpoint of job %s: %w", p.id, err)
	}
	return DecodeCheckpoint(bytes.NewReader(raw), p.id, n)
}

// finiteOr is v, or otherwise where v is not finite: JSON has no other numbers.
func finiteOr(v, otherwise float64) float64 {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return otherwise
	}
	return v
}
