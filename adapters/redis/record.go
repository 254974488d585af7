package redis

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

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
	f.Tenant = owner(tenant)
	if err := checkSHA(f.SHA256); err != nil {
		return f, fmt.Errorf("recording file %s: blob: %w", f.ID, err)
	}
	key := s.meta("files:" + f.Tenant)
	_, err := s.update(ctx, "recording file "+f.ID, []at{{key: key, field: f.ID}, s.blobAt(f.Tenant, f.SHA256)}, func(snap snapshot, c *change) error {
		blob, err := loadBlob(snap, 1, f.SHA256)
		if err != nil {
			return err
		}
		if _, taken := snap.raw(0); taken {
			return adapters.ErrExists
		}
		f.Bytes, f.CreatedAt = blob.Bytes, snap.now
		c.count(s.meta("refs"), blobRef(f.Tenant, f.SHA256), 1)
		c.member(s.meta("tenants"), f.Tenant)
		return save(c, key, f.ID, f)
	})
	return f, err
}

// GetFile is Store.GetFile.
func (s *Store) GetFile(ctx context.Context, tenant, id string) (f adapters.File, err error) {
	if err := checkNames(tenant, id); err != nil {
		return f, fmt.Errorf("getting a file: %w", err)
	}
	return fetch[adapters.File](ctx, s, "getting file "+id, s.meta("files:"+owner(tenant)), id)
}

// ListFiles is Store.ListFiles.
func (s *Store) ListFiles(ctx context.Context, tenant string) ([]adapters.File, error) {
	list, err := fetchAll[adapters.File](ctx, s, "listing files", "files", tenant)
	slices.SortFunc(list, func(a, b adapters.File) int {
		return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(a.Tenant, b.Tenant), cmp.Compare(a.ID, b.ID))
	})
	return list, err
}

// DeleteFile is Store.DeleteFile.
func (s *Store) DeleteFile(ctx context.Context, tenant, id string) error {
	if err := checkNames(tenant, id); err != nil {
		return fmt.Errorf("deleting a file: %w", err)
	}
	tenant = owner(tenant)
	key := s.meta("files:" + tenant)
	_, err := s.update(ctx, "deleting file "+id, []at{{key: key, field: id}}, func(snap snapshot, c *change) error {
		f, err := load[adapters.File](snap, 0, "a file")
		if err != nil {
			return err
		}
		c.frees = true
		c.unset(key, id)
		c.count(s.meta("refs"), blobRef(tenant, f.SHA256), -1)
		return nil
	})
	return err
}

// splitValue takes a stored value apart.
func splitValue(raw string) (rev int64, value []byte, err error) {
	if len(raw) < 8 {
		return 0, nil, fmt.Errorf("%w: a value of %d bytes, without a revision", adapters.ErrCorrupt, len(raw))
	}
	return int64(binary.BigEndian.Uint64([]byte(raw[:8]))), []byte(raw[8:]), nil
}

// PutValue is Store.PutValue. Revisions are Redis' time, so a value that was deleted and put anew does not get an old one again.
func (s *Store) PutValue(ctx context.Context, tenant, name string, value []byte, rev int64) (next int64, err error) {
	if err := checkNames(tenant, name); err != nil {
		return 0, fmt.Errorf("setting a value: %w", err)
	}
	tenant = owner(tenant)
	key := s.meta("values:" + tenant)
	_, err = s.update(ctx, "setting value "+name, []at{{key: key, field: name}}, func(snap snapshot, c *change) error {
		have := int64(0)
		if raw, ok := snap.raw(0); ok {
			if have, _, err = splitValue(raw); err != nil {
				return err
			}
		}
		switch {
		case rev == adapters.AnyRev || rev == have:
		case rev == 0:
			return adapters.ErrExists
		default:
			return fmt.Errorf("%w: revision %d, not %d", adapters.ErrConflict, have, rev)
		}
		next = max(snap.now.UnixMicro(), have+1)
		c.member(s.meta("tenants"), tenant)
		c.set(key, name, string(append(binary.BigEndian.AppendUint64(nil, uint64(next)), value...)))
		return nil
	})
	return next, err
}

// GetValue is Store.GetValue.
func (s *Store) GetValue(ctx context.Context, tenant, name string) (value []byte, rev int64, err error) {
	if err := checkNames(tenant, name); err != nil {
		return nil, 0, fmt.Errorf("getting a value: %w", err)
	}
	err = s.view(ctx, "getting value "+name, func(ctx context.Context) error {
		raw, err := s.client.HGet(ctx, s.meta("values:"+owner(tenant)), name).Result()
		if err == nil {
			rev, value, err = splitValue(raw)
		}
		return err
	})
	return value, rev, err
}

// DeleteValue is Store.DeleteValue.
func (s *Store) DeleteValue(ctx context.Context, tenant, name string) error {
	if err := checkNames(tenant, name); err != nil {
		return fmt.Errorf("deleting a value: %w", err)
	}
	key := s.meta("values:" + owner(tenant))
	_, err := s.update(ctx, "deleting value "+name, []at{{key: key, field: name}}, func(snap snapshot, c *change) error {
		if _, ok := snap.raw(0); !ok {
			return adapters.ErrNotFound
		}
		c.frees = true
		c.unset(key, name)
		return nil
	})
	return err
}

// PutBasis is Store.PutBasis.
func (s *Store) PutBasis(ctx context.Context, b adapters.BasisRecord, replaces string) (adapters.BasisRecord, error) {
	if b.BaseHash == "" {
		return b, fmt.Errorf("recording a basis: %w: the base hash is empty", adapters.ErrInvalidName)
	}
	if err := checkSHA(b.SHA256); err != nil {
		return b, fmt.Errorf("recording the basis: blob: %w", err)
	}
	out := b
	key := s.meta("basis")
	reads := []at{{key: key, field: b.BaseHash}, s.blobAt(adapters.DefaultTenant, b.SHA256)}
	_, err := s.update(ctx, "recording the basis", reads, func(snap snapshot, c *change) error {
		have, err := load[adapters.BasisRecord](snap, 0, "a basis")
		found := err == nil
		switch {
		case err != nil && !errors.Is(err, adapters.ErrNotFound):
			return err
		case found && replaces == "":
			out = have
			return nil
		case replaces != "" && (!found || have.Fingerprint != replaces):
			return fmt.Errorf("%w: the base's basis is %q, not %q", adapters.ErrConflict, have.Fingerprint, replaces)
		}
		blob, err := loadBlob(snap, 1, b.SHA256)
		if err != nil {
			return err
		}
		out = b
		out.Bytes, out.CreatedAt = blob.Bytes, snap.now
		c.count(s.meta("refs"), blobRef(adapters.DefaultTenant, b.SHA256), 1)
		if found {
			c.count(s.meta("refs"), blobRef(adapters.DefaultTenant, have.SHA256), -1)
		}
		c.member(s.meta("tenants"), adapters.DefaultTenant)
		return save(c, key, b.BaseHash, out)
	})
	return out, err
}

// GetBasis is Store.GetBasis.
func (s *Store) GetBasis(ctx context.Context, baseHash string) (adapters.BasisRecord, error) {
	return fetch[adapters.BasisRecord](ctx, s, "getting the basis", s.meta("basis"), baseHash)
}
