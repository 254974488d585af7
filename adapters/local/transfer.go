package local

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"strings"

	"go.etcd.io/bbolt"

	"bhive/adapters"
)

// Export is Store.Export. The records are those of one moment; they are collected before fn sees the first.
func (s *Store) Export(ctx context.Context, fn func(adapters.Record) error) error {
	var records []adapters.Record
	if err := s.view(ctx, "exporting", func(tx *bbolt.Tx) (err error) {
		records, err = export(tx)
		return err
	}); err != nil {
		return err
	}
	for _, r := range records {
		err := ctx.Err()
		if err == nil {
			err = fn(r)
		}
		if err != nil {
			return fmt.Errorf("exporting %v: %w", r, err)
		}
	}
	return nil
}

// splitKey takes a key of two names apart.
func splitKey(k []byte) (tenant, name string) {
	tenant, name, _ = strings.Cut(string(k), "\x00")
	return tenant, name
}

func export(tx *bbolt.Tx) (records []adapters.Record, err error) {
	add := func(r adapters.Record) error { records = append(records, r); return nil }
	if err := scan(tx, bucketBasis, nil, func(_ []byte, b adapters.BasisRecord) error { return add(adapters.Record{Basis: &b}) }); err != nil {
		return nil, err
	}
	if err := scan(tx, bucketFiles, nil, func(_ []byte, f adapters.File) error { return add(adapters.Record{File: &f}) }); err != nil {
		return nil, err
	}
	if err := tx.Bucket(bucketValues).ForEach(func(k, raw []byte) error {
		if len(raw) < 8 {
			return fmt.Errorf("%w: a value without a revision", adapters.ErrCorrupt)
		}
		tenant, name := splitKey(k)
		return add(adapters.Record{Value: &adapters.ValueRecord{Tenant: tenant, Key: name, Value: bytes.Clone(raw[8:])}})
	}); err != nil {
		return nil, err
	}
	if err := scan(tx, bucketNames, nil, func(k []byte, n nameRecord) error {
		tenant, name := splitKey(k)
		a := adapters.AdapterRecord{Tenant: tenant, Name: name, Live: n.Live, Last: n.Last, CreatedAt: n.CreatedAt, UpdatedAt: n.UpdatedAt}
		if n.Live != 0 {
			if a.Versions, err = versions(tx, tenant, name); err != nil {
				return err
			}
		}
		return add(adapters.Record{Adapter: &a})
	}); err != nil {
		return nil, err
	}
	return records, scan(tx, bucketJobs, nil, func(_ []byte, j adapters.Job) error {
		r := adapters.JobRecord{Job: j}
		if err := scan(tx, bucketEvents, key(j.Tenant, j.ID, ""), func(_ []byte, e adapters.Event) error {
			r.Events = append(r.Events, e)
			return nil
		}); err != nil {
			return err
		}
		return add(adapters.Record{Job: &r})
	})
}

// Import is Store.Import.
func (s *Store) Import(ctx context.Context, r adapters.Record) error {
	doing := "importing " + r.String()
	if err := r.Check(); err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	return s.update(ctx, doing, func(tx *bbolt.Tx) error {
		tenant, shas := r.Blobs()
		sizes := make([]int64, len(shas))
		for i, sha := range shas {
			var err error
			if sizes[i], err = blobOf(tx, tenant, sha); err != nil {
				return err
			}
		}
		add := func(bucket, k []byte, v any) error {
			if tx.Bucket(bucket).Get(k) != nil {
				return adapters.ErrExists
			}
			return save(tx, bucket, k, v)
		}
		switch {
		case r.Basis != nil:
			b := *r.Basis
			b.Bytes = sizes[0]
			return add(bucketBasis, []byte(b.BaseHash), b)
		case r.File != nil:
			f := *r.File
			f.Bytes = sizes[0]
			return add(bucketFiles, key(f.Tenant, f.ID), f)
		case r.Value != nil:
			return importValue(tx, *r.Value)
		case r.Adapter != nil:
			return s.importAdapter(tx, *r.Adapter, sizes)
		}
		j := r.Job.Job
		for _, e := range r.Job.Events {
			if err := save(tx, bucketEvents, numbered(uint64(e.Seq), j.Tenant, j.ID), e); err != nil {
				return err
			}
		}
		return add(bucketJobs, key(j.Tenant, j.ID), j)
	})
}

func importValue(tx *bbolt.Tx, v adapters.ValueRecord) error {
	b, k := tx.Bucket(bucketValues), key(v.Tenant, v.Key)
	if b.Get(k) != nil {
		return adapters.ErrExists
	}
	seq, err := b.NextSequence()
	if err != nil {
		return err
	}
	return b.Put(k, append(binary.BigEndian.AppendUint64(nil, seq), v.Value...))
}

func (s *Store) importAdapter(tx *bbolt.Tx, a adapters.AdapterRecord, sizes []int64) error {
	k := key(a.Tenant, a.Name)
	if tx.Bucket(bucketNames).Get(k) != nil {
		return adapters.ErrExists
	}
	for i, v := range a.Versions {
		v.Bytes = sizes[i]
		if err := save(tx, bucketVersions, numbered(uint64(v.Number), a.Tenant, a.Name), v); err != nil {
			return err
		}
	}
	if err := save(tx, bucketNames, k, nameRecord{a.Live, a.Last, a.CreatedAt, a.UpdatedAt}); err != nil || a.Live == 0 {
		return err
	}
	return s.announce(tx, adapters.Published, a.Tenant, a.Name, a.Live)
}
