package local

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"go.etcd.io/bbolt"

	"bhive/adapters"
)

// CreateJob is Store.CreateJob.
func (s *Store) CreateJob(ctx context.Context, tenant string, j adapters.Job, events ...json.RawMessage) (adapters.Job, error) {
	if err := checkNames(tenant, j.ID); err != nil {
		return j, fmt.Errorf("creating a job: %w", err)
	}
	j.Tenant, j.Rev, j.CreatedAt = owner(tenant), 1, now()
	j.UpdatedAt = j.CreatedAt
	return j, s.update(ctx, "creating job "+j.ID, func(tx *bbolt.Tx) error {
		if tx.Bucket(bucketJobs).Get(key(j.Tenant, j.ID)) != nil {
			return adapters.ErrExists
		}
		return saveJob(tx, j, events)
	})
}

func saveJob(tx *bbolt.Tx, j adapters.Job, events []json.RawMessage) error {
	for _, sha := range j.Blobs {
		if _, err := blobOf(tx, j.Tenant, sha); err != nil {
			return err
		}
	}
	if err := save(tx, bucketJobs, key(j.Tenant, j.ID), j); err != nil {
		return err
	}
	_, err := appendEvents(tx, j.Tenant, j.ID, events)
	return err
}

// GetJob is Store.GetJob.
func (s *Store) GetJob(ctx context.Context, tenant, id string) (j adapters.Job, err error) {
	if err := checkNames(tenant, id); err != nil {
		return j, fmt.Errorf("getting a job: %w", err)
	}
	err = s.view(ctx, "getting job "+id, func(tx *bbolt.Tx) error {
		j, err = load[adapters.Job](tx, bucketJobs, key(owner(tenant), id))
		return err
	})
	return j, err
}

// ListJobs is Store.ListJobs.
func (s *Store) ListJobs(ctx context.Context, tenant string, states ...string) ([]adapters.Job, error) {
	prefix, err := tenantPrefix(tenant)
	if err != nil {
		return nil, fmt.Errorf("listing jobs: %w", err)
	}
	var list []adapters.Job
	err = s.view(ctx, "listing jobs", func(tx *bbolt.Tx) error {
		return scan(tx, bucketJobs, prefix, func(_ []byte, j adapters.Job) error {
			if len(states) == 0 || slices.Contains(states, j.State) {
				list = append(list, j)
			}
			return nil
		})
	})
	slices.SortStableFunc(list, func(a, b adapters.Job) int {
		return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(a.ID, b.ID))
	})
	return list, err
}

// UpdateJob is Store.UpdateJob.
func (s *Store) UpdateJob(ctx context.Context, tenant string, j adapters.Job, events ...json.RawMessage) (out adapters.Job, err error) {
	if err := checkNames(tenant, j.ID); err != nil {
		return j, fmt.Errorf("updating a job: %w", err)
	}
	err = s.update(ctx, "updating job "+j.ID, func(tx *bbolt.Tx) error {
		out, err = updateJob(tx, owner(tenant), j, events)
		return err
	})
	return out, err
}

func updateJob(tx *bbolt.Tx, tenant string, j adapters.Job, events []json.RawMessage) (adapters.Job, error) {
	have, err := load[adapters.Job](tx, bucketJobs, key(tenant, j.ID))
	if err != nil {
		return j, fmt.Errorf("job %s: %w", j.ID, err)
	}
	if have.Rev != j.Rev {
		return j, fmt.Errorf("job %s: %w: revision %d, not %d", j.ID, adapters.ErrConflict, have.Rev, j.Rev)
	}
	j.Tenant, j.Kind, j.CreatedAt, j.UpdatedAt = tenant, have.Kind, have.CreatedAt, now()
	j.Rev++
	return j, saveJob(tx, j, events)
}

// DeleteJob is Store.DeleteJob.
func (s *Store) DeleteJob(ctx context.Context, tenant, id string) error {
	if err := checkNames(tenant, id); err != nil {
		return fmt.Errorf("deleting a job: %w", err)
	}
	return s.deletion(ctx, "deleting job "+id, func(tx *bbolt.Tx) error {
		k := key(owner(tenant), id)
		if tx.Bucket(bucketJobs).Get(k) == nil {
			return adapters.ErrNotFound
		}
		if err := tx.Bucket(bucketJobs).Delete(k); err != nil {
			return err
		}
		return removeAll(tx, bucketEvents, key(owner(tenant), id, ""))
	})
}

// AppendEvents is Store.AppendEvents.
func (s *Store) AppendEvents(ctx context.Context, tenant, id string, events ...json.RawMessage) (last int64, err error) {
	if err := checkNames(tenant, id); err != nil {
		return 0, fmt.Errorf("logging a job's events: %w", err)
	}
	err = s.update(ctx, "logging events of job "+id, func(tx *bbolt.Tx) error {
		if tx.Bucket(bucketJobs).Get(key(owner(tenant), id)) == nil {
			return adapters.ErrNotFound
		}
		last, err = appendEvents(tx, owner(tenant), id, events)
		return err
	})
	return last, err
}

func appendEvents(tx *bbolt.Tx, tenant, id string, events []json.RawMessage) (int64, error) {
	last, err := lastEvent(tx, tenant, id)
	if err != nil {
		return 0, err
	}
	for _, data := range events {
		last++
		if err := save(tx, bucketEvents, numbered(uint64(last), tenant, id), adapters.Event{Seq: last, At: now(), Data: data}); err != nil {
			return 0, err
		}
	}
	return last, nil
}

// lastEvent is the one before the first key beyond the job's.
func lastEvent(tx *bbolt.Tx, tenant, id string) (int64, error) {
	c := tx.Bucket(bucketEvents).Cursor()
	c.Seek(append(key(tenant, id), 1))
	k, raw := c.Prev()
	if k == nil {
		k, raw = c.Last()
	}
	if prefix := string(key(tenant, id, "")); k != nil && len(k) == len(prefix)+8 && string(k[:len(prefix)]) == prefix {
		var e adapters.Event
		if err := decode(bucketEvents, raw, &e); err != nil {
			return 0, err
		}
		return e.Seq, nil
	}
	return 0, nil
}

// LastEvent is Store.LastEvent.
func (s *Store) LastEvent(ctx context.Context, tenant, id string) (last int64, err error) {
	if err := checkNames(tenant, id); err != nil {
		return 0, fmt.Errorf("finding a job's last event: %w", err)
	}
	err = s.view(ctx, "finding the last event of job "+id, func(tx *bbolt.Tx) error {
		if tx.Bucket(bucketJobs).Get(key(owner(tenant), id)) == nil {
			return adapters.ErrNotFound
		}
		last, err = lastEvent(tx, owner(tenant), id)
		return err
	})
	return last, err
}

// Events is Store.Events.
func (s *Store) Events(ctx context.Context, tenant, id string, after int64, limit int) ([]adapters.Event, error) {
	if err := checkNames(tenant, id); err != nil {
		return nil, fmt.Errorf("reading a job's events: %w", err)
	}
	var list []adapters.Event
	err := s.view(ctx, "reading events of job "+id, func(tx *bbolt.Tx) error {
		if tx.Bucket(bucketJobs).Get(key(owner(tenant), id)) == nil {
			return adapters.ErrNotFound
		}
		c := tx.Bucket(bucketEvents).Cursor()
		end := string(append(key(owner(tenant), id), 1))
		for k, raw := c.Seek(numbered(uint64(max(after, 0)+1), owner(tenant), id)); k != nil && string(k) < end && (limit <= 0 || len(list) < limit); k, raw = c.Next() {
			var e adapters.Event
			if err := decode(bucketEvents, raw, &e); err != nil {
				return err
			}
			list = append(list, e)
		}
		return nil
	})
	return list, err
}
