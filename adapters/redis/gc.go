package redis

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"bhive/adapters"
)

const scanBatch = 500 // hash fields asked for at once

// GC is Store.GC. It also removes the chunks of blobs that never came to be.
func (s *Store) GC(ctx context.Context, grace time.Duration) (adapters.GCReport, error) {
	const doing = "collecting garbage"
	var report adapters.GCReport
	var tenants []string
	err := s.view(ctx, doing, func(ctx context.Context) (err error) {
		tenants, err = s.client.SMembers(ctx, s.meta("tenants")).Result()
		return err
	})
	for _, t := range tenants {
		if err == nil {
			err = s.scan(ctx, doing, s.blobsKey(t), func(batch []string) error { return s.collect(ctx, doing, t, batch, grace, &report) })
		}
	}
	if err == nil {
		err = s.collectOrphans(ctx, doing, grace)
	}
	return report, err
}

// scan calls fn with the fields and values of a hash, in batches.
func (s *Store) scan(ctx context.Context, doing, key string, fn func([]string) error) error {
	for position := uint64(0); ; {
		var batch []string
		err := s.view(ctx, doing, func(ctx context.Context) (err error) {
			var next uint64
			batch, next, err = s.client.HScan(ctx, key, position, "", scanBatch).Result()
			if err == nil {
				position = next
			}
			return err
		})
		if err == nil && len(batch) > 0 {
			err = fn(batch)
		}
		if err != nil || position == 0 {
			return err
		}
	}
}

// collect removes those blobs of a batch that are garbage.
func (s *Store) collect(ctx context.Context, doing, tenant string, batch []string, grace time.Duration, report *adapters.GCReport) error {
	refs := make([]string, 0, len(batch)/2)
	for i := 0; i < len(batch); i += 2 {
		refs = append(refs, blobRef(tenant, batch[i]))
	}
	var counts []any
	if err := s.view(ctx, doing, func(ctx context.Context) (err error) {
		counts, err = s.client.HMGet(ctx, s.meta("refs"), refs...).Result()
		return err
	}); err != nil {
		return err
	}
	for i, n := range counts {
		if n == nil {
			if err := s.collectBlob(ctx, doing, tenant, batch[2*i], grace, report); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *Store) collectBlob(ctx context.Context, doing, tenant, sha string, grace time.Duration, report *adapters.GCReport) error {
	reads := []at{{key: s.blobsKey(tenant), field: sha}, {key: s.meta("refs"), field: blobRef(tenant, sha)},
		{key: s.meta("holders"), field: sha}, {key: s.meta("contents"), field: sha}}
	freed := int64(-1)
	_, err := s.update(ctx, doing, reads, func(snap snapshot, c *change) error {
		freed = -1
		b, err := load[blobRecord](snap, 0, "a blob")
		if _, used := snap.raw(1); used || err != nil || snap.now.Sub(b.PutAt) < grace {
			if errors.Is(err, adapters.ErrNotFound) {
				err = nil
			}
			return err
		}
		c.frees = true
		c.unset(s.blobsKey(tenant), sha)
		c.count(s.meta("holders"), sha, -1)
		if holders, _ := snap.raw(2); holders != "1" && holders != "" {
			return nil // another tenant has put it too
		}
		raw, ok := snap.raw(3)
		if !ok {
			return nil
		}
		content, err := decodeContent(raw)
		if err != nil {
			return err
		}
		freed = content.Bytes
		c.unset(s.meta("contents"), sha)
		c.set(s.meta("orphans"), content.ID, "0")
		return nil
	})
	if err == nil && freed >= 0 {
		report.Blobs++
		report.Bytes += freed
	}
	return err
}

// collectOrphans removes chunks that are free to be removed, and those of uploads that were given up.
func (s *Store) collectOrphans(ctx context.Context, doing string, grace time.Duration) error {
	grace = max(grace, s.o.UploadGrace)
	return s.scan(ctx, doing, s.meta("orphans"), func(batch []string) error {
		for i := 0; i+1 < len(batch); i += 2 {
			id, begun := batch[i], batch[i+1]
			micros, err := strconv.ParseInt(begun, 10, 64)
			if err != nil {
				return fmt.Errorf("%s: %w: the orphan %q was begun at %q", doing, adapters.ErrCorrupt, id, begun)
			}
			if micros > 0 {
				free := false
				orphan := at{key: s.meta("orphans"), field: id}
				// As in abandon, but only where no chunk has come meanwhile.
				if _, err := s.update(ctx, doing, []at{orphan}, func(snap snapshot, c *change) error {
					raw, _ := snap.raw(0)
					if free = raw == begun && snap.now.Sub(time.UnixMicro(micros)) >= grace; free {
						c.frees = true
						c.set(orphan.key, id, "0")
					}
					return nil
				}); err != nil {
					return err
				}
				if !free {
					continue
				}
			}
			if err := s.discard(ctx, doing, id); err != nil {
				return err
			}
		}
		return nil
	})
}
