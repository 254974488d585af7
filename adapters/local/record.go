package local

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"slices"

	"go.etcd.io/bbolt"

	"bhive/adapters"
)

const maxFileName = 1024 // bytes

// PutFile is Store.PutFile.
func (s *Store) PutFile(ctx context.Context, tenant string, f adapters.File) (adapters.File, error) {
	if err := checkNames(tenant, f.ID); err != nil {
		return f, fmt.Errorf("recording a file: %w", err)
	}
	if len(f.Name) > maxFileName {
		return f, fmt.Errorf("recording a file: %w: its name has %d bytes, at most %d are allowed", adapters.ErrInvalidName, len(f.Name), maxFileName)
	}
	f.Tenant, f.CreatedAt = owner(tenant), now()
	return f, s.update(ctx, "recording file "+f.ID, func(tx *bbolt.Tx) (err error) {
		if f.Bytes, err = blobOf(tx, f.Tenant, f.SHA256); err != nil {
			return err
		}
		if tx.Bucket(bucketFiles).Get(key(f.Tenant, f.ID)) != nil {
			return adapters.ErrExists
		}
		return save(tx, bucketFiles, key(f.Tenant, f.ID), f)
	})
}

// GetFile is Store.GetFile.
func (s *Store) GetFile(ctx context.Context, tenant, id string) (f adapters.File, err error) {
	if err := checkNames(tenant, id); err != nil {
		return f, fmt.Errorf("getting a file: %w", err)
	}
	err = s.view(ctx, "getting file "+id, func(tx *bbolt.Tx) error {
		f, err = load[adapters.File](tx, bucketFiles, key(owner(tenant), id))
		return err
	})
	return f, err
}

// ListFiles is Store.ListFiles.
func (s *Store) ListFiles(ctx context.Context, tenant string) ([]adapters.File, error) {
	prefix, err := tenantPrefix(tenant)
	if err != nil {
		return nil, fmt.Errorf("listing files: %w", err)
	}
	var list []adapters.File
	err = s.view(ctx, "listing files", func(tx *bbolt.Tx) error {
		return scan(tx, bucketFiles, prefix, func(_ []byte, f adapters.File) error {
			list = append(list, f)
			return nil
		})
	})
	slices.SortStableFunc(list, func(a, b adapters.File) int {
		return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(a.ID, b.ID))
	})
	return list, err
}

// DeleteFile is Store.DeleteFile.
func (s *Store) DeleteFile(ctx context.Context, tenant, id string) error {
	if err := checkNames(tenant, id); err != nil {
		return fmt.Errorf("deleting a file: %w", err)
	}
	return s.remove(ctx, "deleting file "+id, bucketFiles, key(owner(tenant), id))
}

func (s *Store) remove(ctx context.Context, doing string, bucket, k []byte) error {
	return s.deletion(ctx, doing, func(tx *bbolt.Tx) error {
		if tx.Bucket(bucket).Get(k) == nil {
			return adapters.ErrNotFound
		}
		return tx.Bucket(bucket).Delete(k)
	})
}

// PutValue is Store.PutValue. Revisions come from the bucket's sequence, so a value that was deleted and put anew
// does not get an old one again.
func (s *Store) PutValue(ctx context.Context, tenant, name string, value []byte, rev int64) (next int64, err error) {
	if err := checkNames(tenant, name); err != nil {
		return 0, fmt.Errorf("setting a value: %w", err)
	}
	err = s.update(ctx, "setting value "+name, func(tx *bbolt.Tx) error {
		b, k := tx.Bucket(bucketValues), key(owner(tenant), name)
		have := int64(0)
		if raw := b.Get(k); len(raw) >= 8 {
			have = int64(binary.BigEndian.Uint64(raw))
		}
		switch {
		case rev == adapters.AnyRev || rev == have:
		case rev == 0:
			return adapters.ErrExists
		default:
			return fmt.Errorf("%w: revision %d, not %d", adapters.ErrConflict, have, rev)
		}
		seq, err := b.NextSequence()
		if err != nil {
			return err
		}
		next = int64(seq)
		return b.Put(k, append(binary.BigEndian.AppendUint64(nil, seq), value...))
	})
	return next, err
}

// GetValue is Store.GetValue.
func (s *Store) GetValue(ctx context.Context, tenant, name string) (value []byte, rev int64, err error) {
	if err := checkNames(tenant, name); err != nil {
		return nil, 0, fmt.Errorf("getting a value: %w", err)
	}
	err = s.view(ctx, "getting value "+name, func(tx *bbolt.Tx) error {
		raw := tx.Bucket(bucketValues).Get(key(owner(tenant), name))
		if len(raw) < 8 {
			return adapters.ErrNotFound
		}
		rev, value = int64(binary.BigEndian.Uint64(raw)), bytes.Clone(raw[8:])
		return nil
	})
	return value, rev, err
}

// DeleteValue is Store.DeleteValue.
func (s *Store) DeleteValue(ctx context.Context, tenant, name string) error {
	if err := checkNames(tenant, name); err != nil {
		return fmt.Errorf("deleting a value: %w", err)
	}
	return s.remove(ctx, "deleting value "+name, bucketValues, key(owner(tenant), name))
}

// PutBasis is Store.PutBasis.
func (s *Store) PutBasis(ctx context.Context, b adapters.BasisRecord, replaces string) (out adapters.BasisRecord, err error) {
	if b.BaseHash == "" {
		return b, fmt.Errorf("recording a basis: %w: the base hash is empty", adapters.ErrInvalidName)
	}
	err = s.update(ctx, "recording the basis", func(tx *bbolt.Tx) error {
		have, err := load[adapters.BasisRecord](tx, bucketBasis, []byte(b.BaseHash))
		found := err == nil
		switch {
		case found && replaces == "":
			out = have
			return nil
		case replaces != "" && (!found || have.Fingerprint != replaces):
			return fmt.Errorf("%w: the base's basis is %q, not %q", adapters.ErrConflict, have.Fingerprint, replaces)
		}
		if b.Bytes, err = blobOf(tx, adapters.DefaultTenant, b.SHA256); err != nil {
			return err
		}
		b.CreatedAt = now()
		out = b
		return save(tx, bucketBasis, []byte(b.BaseHash), b)
	})
	return out, err
}

// GetBasis is Store.GetBasis.
func (s *Store) GetBasis(ctx context.Context, baseHash string) (b adapters.BasisRecord, err error) {
	err = s.view(ctx, "getting the basis", func(tx *bbolt.Tx) error {
		b, err = load[adapters.BasisRecord](tx, bucketBasis, []byte(baseHash))
		return err
	})
	return b, err
}
