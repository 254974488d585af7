package redis

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"

	"bhive/adapters"
)

// Export is Store.Export.
func (s *Store) Export(ctx context.Context, fn func(adapters.Record) error) error {
	const doing = "exporting"
	give := func(r adapters.Record) error {
		if err := fn(r); err != nil {
			return fmt.Errorf("exporting %v: %w", r, err)
		}
		return nil
	}
	bases, err := s.all(ctx, doing, s.meta("basis"))
	if err != nil {
		return err
	}
	for _, hash := range slices.Sorted(maps.Keys(bases)) {
		b, err := decode[adapters.BasisRecord]("a basis", bases[hash])
		if err == nil {
			err = give(adapters.Record{Basis: &b})
		}
		if err != nil {
			return err
		}
	}
	files, err := s.ListFiles(ctx, adapters.AllTenants)
	if err != nil {
		return err
	}
	for _, f := range files {
		if err := give(adapters.Record{File: &f}); err != nil {
			return err
		}
	}
	if err := s.exportValues(ctx, doing, give); err != nil {
		return err
	}
	names, err := fetchAll[nameRecord](ctx, s, doing, "names", adapters.AllTenants)
	if err != nil {
		return err
	}
	for _, n := range names {
		n, versions, err := s.adapter(ctx, doing, n.Tenant, n.Name)
		if err == nil {
			err = give(adapters.Record{Adapter: &adapters.AdapterRecord{Tenant: n.Tenant, Name: n.Name, Live: n.Live, Last: n.Last,
				CreatedAt: n.CreatedAt, UpdatedAt: n.UpdatedAt, Versions: versions}})
		}
		if err != nil {
			return err
		}
	}
	jobs, err := s.ListJobs(ctx, adapters.AllTenants)
	if err != nil {
		return err
	}
	for _, j := range jobs {
		events, err := s.Events(ctx, j.Tenant, j.ID, 0, 0)
		if errors.Is(err, adapters.ErrNotFound) {
			continue // deleted since
		}
		if err == nil {
			err = give(adapters.Record{Job: &adapters.JobRecord{Job: j, Events: events}})
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) exportValues(ctx context.Context, doing string, give func(adapters.Record) error) error {
	var tenants []string
	if err := s.view(ctx, doing, func(ctx context.Context) (err error) {
		tenants, err = s.client.SMembers(ctx, s.meta("tenants")).Result()
		return err
	}); err != nil {
		return err
	}
	for _, t := range slices.Sorted(slices.Values(tenants)) {
		values, err := s.all(ctx, doing, s.meta("values:"+t))
		if err != nil {
			return err
		}
		for _, name := range slices.Sorted(maps.Keys(values)) {
			_, value, err := splitValue(values[name])
			if err == nil {
				err = give(adapters.Record{Value: &adapters.ValueRecord{Tenant: t, Key: name, Value: value}})
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// all returns a whole hash.
func (s *Store) all(ctx context.Context, doing, key string) (fields map[string]string, err error) {
	err = s.view(ctx, doing, func(ctx context.Context) error {
		fields, err = s.client.HGetAll(ctx, key).Result()
		return err
	})
	return fields, err
}

// Import is Store.Import.
func (s *Store) Import(ctx context.Context, r adapters.Record) error {
	doing := "importing " + r.String()
	if err := r.Check(); err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	tenant, shas := r.Blobs()
	key, field := s.place(r)
	reads := []at{{key: key, field: field}}
	for _, sha := range shas {
		if err := checkSHA(sha); err != nil {
			return fmt.Errorf("%s: blob: %w", doing, err)
		}
		reads = append(reads, s.blobAt(tenant, sha))
	}
	_, err := s.update(ctx, doing, reads, func(snap snapshot, c *change) error {
		if _, taken := snap.raw(0); taken {
			return adapters.ErrExists
		}
		sizes := make([]int64, len(shas))
		for i, sha := range shas {
			b, err := loadBlob(snap, i+1, sha)
			if err != nil {
				return err
			}
			sizes[i] = b.Bytes
		}
		c.member(s.meta("tenants"), tenant)
		s.moveRefs(c, tenant, nil, shas)
		switch {
		case r.Basis != nil:
			b := *r.Basis
			b.Bytes = sizes[0]
			return save(c, key, field, b)
		case r.File != nil:
			f := *r.File
			f.Bytes = sizes[0]
			return save(c, key, field, f)
		case r.Value != nil:
			c.set(key, field, string(append(binary.BigEndian.AppendUint64(nil, uint64(snap.now.UnixMicro())), r.Value.Value...)))
			return nil
		case r.Adapter != nil:
			return s.importAdapter(c, snap, *r.Adapter, sizes)
		}
		if err := save(c, key, field, r.Job.Job); err != nil {
			return err
		}
		events := make([]eventRecord, len(r.Job.Events))
		for i, e := range r.Job.Events {
			events[i] = eventRecord{e.At, e.Data}
		}
		return s.pushEvents(c, tenant, r.Job.Job.ID, events)
	})
	return err
}

// place is the hash and field of a record.
func (s *Store) place(r adapters.Record) (key, field string) {
	switch {
	case r.Basis != nil:
		return s.meta("basis"), r.Basis.BaseHash
	case r.File != nil:
		return s.meta("files:" + r.File.Tenant), r.File.ID
	case r.Value != nil:
		return s.meta("values:" + r.Value.Tenant), r.Value.Key
	case r.Adapter != nil:
		return s.namesKey(r.Adapter.Tenant), r.Adapter.Name
	}
	return s.jobsKey(r.Job.Job.Tenant), r.Job.Job.ID
}

func (s *Store) importAdapter(c *change, snap snapshot, a adapters.AdapterRecord, sizes []int64) error {
	n := nameRecord{Tenant: a.Tenant, Name: a.Name, Live: a.Live, Last: a.Last, CreatedAt: a.CreatedAt, UpdatedAt: a.UpdatedAt}
	for i, v := range a.Versions {
		v.Bytes = sizes[i]
		n.Versions = append(n.Versions, [2]int64{int64(v.Number), v.Bytes})
		if err := save(c, s.versionsKey(a.Tenant, a.Name), fmt.Sprint(v.Number), v); err != nil {
			return err
		}
	}
	if err := save(c, s.namesKey(a.Tenant), a.Name, n); err != nil || a.Live == 0 {
		return err
	}
	return s.announce(c, snap, adapters.Published, a.Tenant, a.Name, a.Live)
}
