package redis

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"bhive/adapters"
)

func (s *Store) jobsKey(tenant string) string       { return s.meta("jobs:" + tenant) }
func (s *Store) eventsKey(tenant, id string) string { return s.meta("events:" + tenant + "/" + id) }

// eventRecord is an event in its list, where its place is its number.
type eventRecord struct {
	At   time.Time       `json:"at"`
	Data json.RawMessage `json:"data"`
}

// jobReads are the reads of a call on a job that keeps blobs alive.
func (s *Store) jobReads(tenant string, j adapters.Job) ([]at, error) {
	reads := []at{{key: s.jobsKey(tenant), field: j.ID}}
	for _, sha := range j.Blobs {
		if err := checkSHA(sha); err != nil {
			return nil, fmt.Errorf("blob: %w", err)
		}
		reads = append(reads, s.blobAt(tenant, sha))
	}
	return reads, nil
}

// CreateJob is Store.CreateJob.
func (s *Store) CreateJob(ctx context.Context, tenant string, j adapters.Job, events ...json.RawMessage) (adapters.Job, error) {
	if err := checkNames(tenant, j.ID); err != nil {
		return j, fmt.Errorf("creating a job: %w", err)
	}
	j.Tenant, j.Rev = owner(tenant), 1
	reads, err := s.jobReads(j.Tenant, j)
	if err != nil {
		return j, fmt.Errorf("creating job %s: %w", j.ID, err)
	}
	_, err = s.update(ctx, "creating job "+j.ID, reads, func(snap snapshot, c *change) error {
		if _, taken := snap.raw(0); taken {
			return adapters.ErrExists
		}
		j.CreatedAt, j.UpdatedAt = snap.now, snap.now
		return s.saveJob(snap, 1, c, j, nil, stamped(snap, events))
	})
	return j, err
}

func stamped(snap snapshot, events []json.RawMessage) []eventRecord {
	list := make([]eventRecord, len(events))
	for i, e := range events {
		list[i] = eventRecord{snap.now, e}
	}
	return list
}

// saveJob writes a job whose blobs were read from place i on, and moves the references from the blobs that it had before.
func (s *Store) saveJob(snap snapshot, i int, c *change, j adapters.Job, before []string, events []eventRecord) error {
	for k, sha := range j.Blobs {
		if _, err := loadBlob(snap, i+k, sha); err != nil {
			return err
		}
	}
	s.moveRefs(c, j.Tenant, before, j.Blobs)
	c.member(s.meta("tenants"), j.Tenant)
	if err := save(c, s.jobsKey(j.Tenant), j.ID, j); err != nil {
		return err
	}
	return s.pushEvents(c, j.Tenant, j.ID, events)
}

func (s *Store) moveRefs(c *change, tenant string, before, after []string) {
	for _, sha := range after {
		c.count(s.meta("refs"), blobRef(tenant, sha), 1)
	}
	for _, sha := range before {
		c.count(s.meta("refs"), blobRef(tenant, sha), -1)
	}
}

func (s *Store) pushEvents(c *change, tenant, id string, events []eventRecord) error {
	for _, e := range events {
		raw, err := encode("an event", e)
		if err != nil {
			return err
		}
		c.push(s.eventsKey(tenant, id), raw)
	}
	return nil
}

// GetJob is Store.GetJob.
func (s *Store) GetJob(ctx context.Context, tenant, id string) (j adapters.Job, err error) {
	if err := checkNames(tenant, id); err != nil {
		return j, fmt.Errorf("getting a job: %w", err)
	}
	return fetch[adapters.Job](ctx, s, "getting job "+id, s.jobsKey(owner(tenant)), id)
}

// ListJobs is Store.ListJobs.
func (s *Store) ListJobs(ctx context.Context, tenant string, states ...string) ([]adapters.Job, error) {
	list, err := fetchAll[adapters.Job](ctx, s, "listing jobs", "jobs", tenant)
	list = slices.DeleteFunc(list, func(j adapters.Job) bool { return len(states) > 0 && !slices.Contains(states, j.State) })
	slices.SortFunc(list, func(a, b adapters.Job) int {
		return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(a.Tenant, b.Tenant), cmp.Compare(a.ID, b.ID))
	})
	return list, err
}

// UpdateJob is Store.UpdateJob.
func (s *Store) UpdateJob(ctx context.Context, tenant string, j adapters.Job, events ...json.RawMessage) (out adapters.Job, err error) {
	if err := checkNames(tenant, j.ID); err != nil {
		return j, fmt.Errorf("updating a job: %w", err)
	}
	tenant = owner(tenant)
	reads, err := s.jobReads(tenant, j)
	if err != nil {
		return j, fmt.Errorf("updating job %s: %w", j.ID, err)
	}
	_, err = s.update(ctx, "updating job "+j.ID, reads, func(snap snapshot, c *change) error {
		out, err = s.updateJob(snap, 0, c, tenant, j, events)
		return err
	})
	return out, err
}

// updateJob replaces the job read at place i, whose blobs were read behind it.
func (s *Store) updateJob(snap snapshot, i int, c *change, tenant string, j adapters.Job, events []json.RawMessage) (adapters.Job, error) {
	have, err := load[adapters.Job](snap, i, "a job")
	if err != nil {
		return j, fmt.Errorf("job %s: %w", j.ID, err)
	}
	if have.Rev != j.Rev {
		return j, fmt.Errorf("job %s: %w: revision %d, not %d", j.ID, adapters.ErrConflict, have.Rev, j.Rev)
	}
	j.Tenant, j.Kind, j.CreatedAt, j.UpdatedAt = tenant, have.Kind, have.CreatedAt, snap.now
	j.Rev++
	return j, s.saveJob(snap, i+1, c, j, have.Blobs, stamped(snap, events))
}

// DeleteJob is Store.DeleteJob.
func (s *Store) DeleteJob(ctx context.Context, tenant, id string) error {
	if err := checkNames(tenant, id); err != nil {
		return fmt.Errorf("deleting a job: %w", err)
	}
	tenant = owner(tenant)
	_, err := s.update(ctx, "deleting job "+id, []at{{key: s.jobsKey(tenant), field: id}}, func(snap snapshot, c *change) error {
		j, err := load[adapters.Job](snap, 0, "a job")
		if err != nil {
			return err
		}
		c.frees = true
		s.moveRefs(c, tenant, j.Blobs, nil)
		c.unset(s.jobsKey(tenant), id)
		c.del(s.eventsKey(tenant, id))
		return nil
	})
	return err
}

// AppendEvents is Store.AppendEvents.
func (s *Store) AppendEvents(ctx context.Context, tenant, id string, events ...json.RawMessage) (int64, error) {
	if err := checkNames(tenant, id); err != nil {
		return 0, fmt.Errorf("logging a job's events: %w", err)
	}
	tenant = owner(tenant)
	if len(events) == 0 {
		return s.LastEvent(ctx, tenant, id)
	}
	reads := []at{{key: s.jobsKey(tenant), field: id, loose: true}}
	return s.update(ctx, "logging events of job "+id, reads, func(snap snapshot, c *change) error {
		if _, ok := snap.raw(0); !ok {
			return adapters.ErrNotFound
		}
		return s.pushEvents(c, tenant, id, stamped(snap, events))
	})
}

// LastEvent is Store.LastEvent.
func (s *Store) LastEvent(ctx context.Context, tenant, id string) (int64, error) {
	if err := checkNames(tenant, id); err != nil {
		return 0, fmt.Errorf("finding a job's last event: %w", err)
	}
	tenant = owner(tenant)
	n, err := s.ofJob(ctx, "finding the last event of job "+id, tenant, id, query{"LLEN", s.eventsKey(tenant, id), "", ""})
	last, _ := n.(int64)
	return last, err
}

// ofJob reads something of a job, provided that it exists.
func (s *Store) ofJob(ctx context.Context, doing, tenant, id string, q query) (answer any, err error) {
	err = s.view(ctx, doing, func(ctx context.Context) error {
		out, err := s.query(ctx, query{"HEXISTS", s.jobsKey(tenant), id, ""}, q)
		if err != nil {
			return err
		}
		if out[0] != int64(1) {
			return adapters.ErrNotFound
		}
		answer = out[1]
		return nil
	})
	return answer, err
}

// Events is Store.Events.
func (s *Store) Events(ctx context.Context, tenant, id string, after int64, limit int) ([]adapters.Event, error) {
	if err := checkNames(tenant, id); err != nil {
		return nil, fmt.Errorf("reading a job's events: %w", err)
	}
	tenant, after = owner(tenant), max(after, 0)
	doing := "reading events of job " + id
	end := int64(-1)
	if limit > 0 {
		end = after + int64(limit) - 1
	}
	answer, err := s.ofJob(ctx, doing, tenant, id, query{"LRANGE", s.eventsKey(tenant, id), after, end})
	if err != nil {
		return nil, err
	}
	var list []adapters.Event
	var bad error
	for i, raw := range texts(answer) {
		e, err := decode[eventRecord]("an event", raw)
		bad = errors.Join(bad, err)
		list = append(list, adapters.Event{Seq: after + int64(i) + 1, At: e.At, Data: e.Data})
	}
	if bad != nil {
		return nil, fmt.Errorf("%s: %w", doing, bad)
	}
	return list, nil
}
