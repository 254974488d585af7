package local

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"go.etcd.io/bbolt"

	"bhive/adapters"
)

// nameRecord stays when a name is deleted, so that numbers are never reused.
type nameRecord struct {
	Live      int       `json:"live"` // 0: the name is deleted
	Last      int       `json:"last"` // the largest number ever given
	CreatedAt time.Time `json:"created_at"`
	UpdatedAt time.Time `json:"updated_at"`
}

func loadName(tx *bbolt.Tx, tenant, name string) (nameRecord, error) {
	n, err := load[nameRecord](tx, bucketNames, key(tenant, name))
	if err == nil && n.Live == 0 {
		err = adapters.ErrNotFound
	}
	return n, err
}

// Publish is Store.Publish.
func (s *Store) Publish(ctx context.Context, tenant string, v adapters.Version, o adapters.PublishOptions) (adapters.Version, error) {
	if err := checkNames(tenant, v.Name); err != nil {
		return v, fmt.Errorf("publishing: %w", err)
	}
	err := s.update(ctx, fmt.Sprintf("publishing %q", v.Name), func(tx *bbolt.Tx) error { return s.publish(tx, owner(tenant), &v, o) })
	return v, err
}

// PublishBlob is adapters.BlobPublisher's. What is refused leaves a file without a record.
func (s *Store) PublishBlob(ctx context.Context, tenant string, r io.Reader, v adapters.Version, o adapters.PublishOptions) (adapters.Version, error) {
	if err := checkNames(tenant, v.Name); err != nil {
		return v, fmt.Errorf("publishing: %w", err)
	}
	doing := fmt.Sprintf("publishing %q", v.Name)
	recording := false
	err := s.putBlob(ctx, tenant, r, func(info adapters.BlobInfo) error {
		recording = true
		return s.update(ctx, doing, func(tx *bbolt.Tx) error {
			v.SHA256 = info.SHA256
			if err := recordBlob(tx, owner(tenant), info); err != nil {
				return err
			}
			return s.publish(tx, owner(tenant), &v, o)
		})
	})
	if err != nil && !recording {
		err = fmt.Errorf("%s: storing a blob: %w", doing, err)
	}
	return v, err
}

func (s *Store) publish(tx *bbolt.Tx, tenant string, v *adapters.Version, o adapters.PublishOptions) error {
	v.Tenant = tenant
	size, err := blobOf(tx, v.Tenant, v.SHA256)
	if err != nil {
		return err
	}
	n, err := load[nameRecord](tx, bucketNames, key(v.Tenant, v.Name))
	if err != nil && !errors.Is(err, adapters.ErrNotFound) {
		return err
	}
	if o.CheckLive && n.Live != o.ExpectLive {
		if o.ExpectLive == 0 {
			return adapters.ErrExists
		}
		return fmt.Errorf("%w: version %d is live, not %d", adapters.ErrConflict, n.Live, o.ExpectLive)
	}
	v.CreatedAt = now()
	if n.Live == 0 {
		n.CreatedAt = v.CreatedAt
	}
	n.Last++
	n.Live, n.UpdatedAt = n.Last, v.CreatedAt
	v.Number, v.Bytes = n.Last, size
	if err := save(tx, bucketVersions, numbered(uint64(v.Number), v.Tenant, v.Name), v); err != nil {
		return err
	}
	if err := save(tx, bucketNames, key(v.Tenant, v.Name), n); err != nil {
		return err
	}
	if o.Job != nil {
		j := *o.Job
		j.Published = fmt.Sprintf("%s@%d", v.Name, v.Number)
		if _, err := updateJob(tx, v.Tenant, j, o.Events); err != nil {
			return err
		}
	}
	return s.announce(tx, adapters.Published, v.Tenant, v.Name, v.Number)
}

// Get is Store.Get.
func (s *Store) Get(ctx context.Context, tenant, name string, number int) (v adapters.Version, err error) {
	if err := checkNames(tenant, name); err != nil {
		return v, fmt.Errorf("getting an adapter: %w", err)
	}
	err = s.view(ctx, fmt.Sprintf("getting %s@%d", name, number), func(tx *bbolt.Tx) error {
		v, err = get(tx, owner(tenant), name, number)
		return err
	})
	return v, err
}

func get(tx *bbolt.Tx, tenant, name string, number int) (adapters.Version, error) {
	if number == 0 {
		n, err := loadName(tx, tenant, name)
		if err != nil {
			return adapters.Version{}, err
		}
		number = n.Live
	}
	return load[adapters.Version](tx, bucketVersions, numbered(uint64(number), tenant, name))
}

// List is Store.List.
func (s *Store) List(ctx context.Context, tenant string) ([]adapters.Adapter, error) {
	prefix, err := tenantPrefix(tenant)
	if err != nil {
		return nil, fmt.Errorf("listing adapters: %w", err)
	}
	var list []adapters.Adapter
	err = s.view(ctx, "listing adapters", func(tx *bbolt.Tx) error {
		// Both buckets sort by tenant and name, so versions come in the order of their names.
		var a *adapters.Adapter
		return scan(tx, bucketVersions, prefix, func(_ []byte, v adapters.Version) error {
			if a == nil || a.Tenant != v.Tenant || a.Name != v.Name {
				n, err := loadName(tx, v.Tenant, v.Name)
				if err != nil {
					return err
				}
				list = append(list, adapters.Adapter{Tenant: v.Tenant, Name: v.Name, Live: n.Live, CreatedAt: n.CreatedAt, UpdatedAt: n.UpdatedAt})
				a = &list[len(list)-1]
			}
			a.Versions = append(a.Versions, v.Number)
			a.Bytes += v.Bytes
			return nil
		})
	})
	return list, err
}

// Versions is Store.Versions.
func (s *Store) Versions(ctx context.Context, tenant, name string) ([]adapters.Version, error) {
	if err := checkNames(tenant, name); err != nil {
		return nil, fmt.Errorf("listing versions: %w", err)
	}
	var list []adapters.Version
	err := s.view(ctx, "listing versions of "+name, func(tx *bbolt.Tx) (err error) {
		list, err = versions(tx, owner(tenant), name)
		return err
	})
	return list, err
}

func versions(tx *bbolt.Tx, tenant, name string) ([]adapters.Version, error) {
	if _, err := loadName(tx, tenant, name); err != nil {
		return nil, err
	}
	var list []adapters.Version
	return list, scan(tx, bucketVersions, key(tenant, name, ""), func(_ []byte, v adapters.Version) error {
		list = append(list, v)
		return nil
	})
}

// SetLive is Store.SetLive.
func (s *Store) SetLive(ctx context.Context, tenant, name string, number int) (v adapters.Version, err error) {
	if err := checkNames(tenant, name); err != nil {
		return v, fmt.Errorf("setting the live version: %w", err)
	}
	tenant = owner(tenant)
	err = s.update(ctx, fmt.Sprintf("making %s@%d live", name, number), func(tx *bbolt.Tx) error {
		n, err := loadName(tx, tenant, name)
		if err != nil {
			return err
		}
		if v, err = load[adapters.Version](tx, bucketVersions, numbered(uint64(number), tenant, name)); err != nil {
			return err
		}
		if n.Live == number {
			return nil
		}
		n.Live, n.UpdatedAt = number, now()
		if err := save(tx, bucketNames, key(tenant, name), n); err != nil {
			return err
		}
		return s.announce(tx, adapters.LiveMoved, tenant, name, number)
	})
	return v, err
}

// Delete is Store.Delete.
func (s *Store) Delete(ctx context.Context, tenant, name string, number int) error {
	if err := checkNames(tenant, name); err != nil {
		return fmt.Errorf("deleting an adapter: %w", err)
	}
	tenant = owner(tenant)
	return s.deletion(ctx, fmt.Sprintf("deleting %s@%d", name, number), func(tx *bbolt.Tx) error {
		n, err := loadName(tx, tenant, name)
		if err != nil {
			return err
		}
		if number != 0 {
			list, err := versions(tx, tenant, name)
			if err != nil {
				return err
			}
			k := numbered(uint64(number), tenant, name)
			switch {
			case tx.Bucket(bucketVersions).Get(k) == nil:
				return adapters.ErrNotFound
			case len(list) > 1 && number == n.Live:
				return fmt.Errorf("%w: it is the live version", adapters.ErrConflict)
			case len(list) > 1:
				if err := tx.Bucket(bucketVersions).Delete(k); err != nil {
					return err
				}
				return s.announce(tx, adapters.VersionDeleted, tenant, name, number)
			}
		}
		if err := removeAll(tx, bucketVersions, key(tenant, name, "")); err != nil {
			return err
		}
		n.Live, n.UpdatedAt = 0, now()
		if err := save(tx, bucketNames, key(tenant, name), n); err != nil {
			return err
		}
		return s.announce(tx, adapters.AdapterDeleted, tenant, name, 0)
	})
}

// announce appends to the change feed and cuts its tail.
func (s *Store) announce(tx *bbolt.Tx, kind adapters.ChangeKind, tenant, name string, number int) error {
	b := tx.Bucket(bucketFeed)
	seq, err := b.NextSequence()
	if err != nil {
		return err
	}
	c := adapters.Change{Cursor: strconv.FormatUint(seq, 10), Kind: kind, Tenant: tenant, Name: name, Number: number, At: now()}
	if err := save(tx, bucketFeed, numbered(seq), c); err != nil {
		return err
	}
	if old := int64(seq) - int64(s.o.FeedLength); old > 0 {
		return b.Delete(numbered(uint64(old)))
	}
	return nil
}

// Cursor is Store.Cursor.
func (s *Store) Cursor(ctx context.Context) (cursor string, err error) {
	err = s.view(ctx, "reading the change feed", func(tx *bbolt.Tx) error {
		cursor = strconv.FormatUint(tx.Bucket(bucketFeed).Sequence(), 10)
		return nil
	})
	return cursor, err
}

const maxChanges = 1000 // returned by one Watch

// Watch is Store.Watch.
func (s *Store) Watch(ctx context.Context, cursor string) ([]adapters.Change, error) {
	const doing = "following the change feed"
	for {
		s.mu.Lock()
		changed := s.changed
		s.mu.Unlock()
		var list []adapters.Change
		if err := s.view(ctx, doing, func(tx *bbolt.Tx) (err error) {
			list, err = changesAfter(tx, cursor)
			return err
		}); err != nil || len(list) > 0 {
			return list, err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fmt.Errorf("%s: %w", doing, ctx.Err())
		case <-s.done:
			return nil, fmt.Errorf("%s: %w", doing, adapters.ErrClosed)
		}
	}
}

func changesAfter(tx *bbolt.Tx, cursor string) ([]adapters.Change, error) {
	b := tx.Bucket(bucketFeed)
	var after uint64
	if cursor != "" {
		var err error
		if after, err = strconv.ParseUint(cursor, 10, 64); err != nil || after > b.Sequence() {
			return nil, fmt.Errorf("%w: this feed never gave out the cursor", adapters.ErrCursorLost)
		}
	}
	var list []adapters.Change
	c := b.Cursor()
	for k, raw := c.Seek(numbered(after + 1)); k != nil && len(list) < maxChanges; k, raw = c.Next() {
		var ch adapters.Change
		if err := decode(bucketFeed, raw, &ch); err != nil {
			return nil, err
		}
		list = append(list, ch)
	}
	if cursor != "" && len(list) > 0 && list[0].Cursor != strconv.FormatUint(after+1, 10) {
		return nil, adapters.ErrCursorLost
	}
	return list, nil
}
