package redis

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"bhive/adapters"
)

// nameRecord stays when a name is deleted, so that numbers are never reused.
type nameRecord struct {
	Tenant    string     `json:"tenant"`
	Name      string     `json:"name"`
	Live      int        `json:"live"` // 0: the name is deleted
	Last      int        `json:"last"` // the largest number ever given
	CreatedAt time.Time  `json:"created_at"`
	UpdatedAt time.Time  `json:"updated_at"`
	Versions  [][2]int64 `json:"versions"` // number, bytes; ascending
}

func (n nameRecord) find(number int) int {
	return slices.IndexFunc(n.Versions, func(v [2]int64) bool { return v[0] == int64(number) })
}

func (s *Store) namesKey(tenant string) string { return s.meta("names:" + tenant) }
func (s *Store) versionsKey(tenant, name string) string {
	return s.meta("versions:" + tenant + "/" + name)
}

// liveName is the record of a name that is not deleted.
func liveName(snap snapshot, i int) (nameRecord, error) {
	n, err := load[nameRecord](snap, i, "a name")
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
	v.Tenant = owner(tenant)
	if err := checkSHA(v.SHA256); err != nil {
		return v, fmt.Errorf("publishing %q: %w", v.Name, err)
	}
	reads := []at{{key: s.namesKey(v.Tenant), field: v.Name}, s.blobAt(v.Tenant, v.SHA256)}
	if o.Job != nil {
		reads = append(reads, at{key: s.jobsKey(v.Tenant), field: o.Job.ID})
		for _, sha := range o.Job.Blobs {
			reads = append(reads, s.blobAt(v.Tenant, sha))
		}
	}
	earlier := 0
	_, err := s.update(ctx, fmt.Sprintf("publishing %q", v.Name), reads, func(snap snapshot, c *change) error {
		blob, err := loadBlob(snap, 1, v.SHA256)
		if err != nil {
			return err
		}
		n, err := load[nameRecord](snap, 0, "a name")
		if err != nil && !errors.Is(err, adapters.ErrNotFound) {
			return err
		}
		if o.Job != nil {
			if earlier, err = publishedBefore(snap, 2, *o.Job, v.Name); err != nil || earlier > 0 {
				return err
			}
		}
		if o.CheckLive && n.Live != o.ExpectLive {
			if o.ExpectLive == 0 {
				return adapters.ErrExists
			}
			return fmt.Errorf("%w: version %d is live, not %d", adapters.ErrConflict, n.Live, o.ExpectLive)
		}
		v.CreatedAt = snap.now
		if n.Live == 0 {
			n.CreatedAt = v.CreatedAt
		}
		n.Last++
		n.Tenant, n.Name, n.Live, n.UpdatedAt = v.Tenant, v.Name, n.Last, v.CreatedAt
		v.Number, v.Bytes = n.Last, blob.Bytes
		n.Versions = append(n.Versions, [2]int64{int64(v.Number), v.Bytes})
		if err := s.saveVersion(c, v); err != nil {
			return err
		}
		if err := save(c, s.namesKey(v.Tenant), v.Name, n); err != nil {
			return err
		}
		c.member(s.meta("tenants"), v.Tenant)
		if o.Job != nil {
			j := *o.Job
			j.Published = fmt.Sprintf("%s@%d", v.Name, v.Number)
			if _, err := s.updateJob(snap, 2, c, v.Tenant, j, o.Events); err != nil {
				return err
			}
		}
		return s.announce(c, snap, adapters.Published, v.Tenant, v.Name, v.Number)
	})
	if err == nil && earlier > 0 {
		have, err := s.Get(ctx, v.Tenant, v.Name, earlier)
		if err == nil && have.SHA256 != v.SHA256 {
			err = fmt.Errorf("publishing %q: job %s: %w: it has published another version", v.Name, o.Job.ID, adapters.ErrConflict)
		}
		return have, err
	}
	return v, err
}

// publishedBefore is the number under which this very call published already: the answer was lost, and the caller tries again.
func publishedBefore(snap snapshot, i int, j adapters.Job, name string) (int, error) {
	have, err := load[adapters.Job](snap, i, "a job")
	if err != nil || have.Rev != j.Rev+1 || have.State != j.State || have.Published == "" || have.Published == j.Published {
		return 0, notFoundAs(err, "job "+j.ID)
	}
	r, err := adapters.ParseRef(have.Published)
	if err != nil || r.Parts[0].Name != name {
		return 0, nil
	}
	return r.Parts[0].Number, nil
}

func (s *Store) saveVersion(c *change, v adapters.Version) error {
	c.count(s.meta("refs"), blobRef(v.Tenant, v.SHA256), 1)
	return save(c, s.versionsKey(v.Tenant, v.Name), strconv.Itoa(v.Number), v)
}

func (s *Store) dropVersion(c *change, v adapters.Version) {
	c.count(s.meta("refs"), blobRef(v.Tenant, v.SHA256), -1)
	c.unset(s.versionsKey(v.Tenant, v.Name), strconv.Itoa(v.Number))
}

// Get is Store.Get.
func (s *Store) Get(ctx context.Context, tenant, name string, number int) (v adapters.Version, err error) {
	if err := checkNames(tenant, name); err != nil {
		return v, fmt.Errorf("getting an adapter: %w", err)
	}
	tenant = owner(tenant)
	doing := fmt.Sprintf("getting %s@%d", name, number)
	if number != 0 {
		return fetch[adapters.Version](ctx, s, doing, s.versionsKey(tenant, name), strconv.Itoa(number))
	}
	const tries = 10 // the live version may be replaced and deleted between the two reads
	for try := 1; ; try++ {
		n, err := fetch[nameRecord](ctx, s, doing, s.namesKey(tenant), name)
		if err != nil {
			return v, err
		}
		if n.Live == 0 {
			return v, fmt.Errorf("%s: %w", doing, adapters.ErrNotFound)
		}
		v, err = fetch[adapters.Version](ctx, s, doing, s.versionsKey(tenant, name), strconv.Itoa(n.Live))
		if !errors.Is(err, adapters.ErrNotFound) {
			return v, err
		}
		if try == tries {
			return v, fmt.Errorf("%s: %w: the record of the live version %d is gone", doing, adapters.ErrCorrupt, n.Live)
		}
	}
}

// List is Store.List.
func (s *Store) List(ctx context.Context, tenant string) ([]adapters.Adapter, error) {
	names, err := fetchAll[nameRecord](ctx, s, "listing adapters", "names", tenant)
	if err != nil {
		return nil, err
	}
	var list []adapters.Adapter
	for _, n := range names {
		if n.Live == 0 {
			continue
		}
		a := adapters.Adapter{Tenant: n.Tenant, Name: n.Name, Live: n.Live, CreatedAt: n.CreatedAt, UpdatedAt: n.UpdatedAt}
		for _, v := range n.Versions {
			a.Versions = append(a.Versions, int(v[0]))
			a.Bytes += v[1]
		}
		list = append(list, a)
	}
	slices.SortFunc(list, func(a, b adapters.Adapter) int {
		return cmp.Or(cmp.Compare(a.Tenant, b.Tenant), cmp.Compare(a.Name, b.Name))
	})
	return list, nil
}

// Versions is Store.Versions.
func (s *Store) Versions(ctx context.Context, tenant, name string) ([]adapters.Version, error) {
	if err := checkNames(tenant, name); err != nil {
		return nil, fmt.Errorf("listing versions: %w", err)
	}
	_, list, err := s.adapter(ctx, "listing versions of "+name, owner(tenant), name)
	if err == nil && len(list) == 0 {
		err = fmt.Errorf("listing versions of %s: %w", name, adapters.ErrNotFound)
	}
	return list, err
}

// adapter returns a name's record, as it is stored, and its versions, oldest first; none where the name is deleted or unknown.
func (s *Store) adapter(ctx context.Context, doing, tenant, name string) (n nameRecord, list []adapters.Version, err error) {
	err = s.view(ctx, doing, func(ctx context.Context) error {
		list = nil
		out, err := s.query(ctx, query{"HGET", s.namesKey(tenant), name, ""}, query{"HVALS", s.versionsKey(tenant, name), "", ""})
		if err != nil {
			return err
		}
		record, ok := out[0].(string)
		if !ok {
			return adapters.ErrNotFound
		}
		if n, err = decode[nameRecord]("a name", record); err != nil {
			return err
		}
		for _, raw := range texts(out[1]) {
			v, err := decode[adapters.Version]("a version", raw)
			if err != nil {
				return err
			}
			list = append(list, v)
		}
		slices.SortFunc(list, func(a, b adapters.Version) int { return cmp.Compare(a.Number, b.Number) })
		return nil
	})
	return n, list, err
}

// SetLive is Store.SetLive.
func (s *Store) SetLive(ctx context.Context, tenant, name string, number int) (v adapters.Version, err error) {
	if err := checkNames(tenant, name); err != nil {
		return v, fmt.Errorf("setting the live version: %w", err)
	}
	tenant = owner(tenant)
	reads := []at{{key: s.namesKey(tenant), field: name}, {key: s.versionsKey(tenant, name), field: strconv.Itoa(number)}}
	_, err = s.update(ctx, fmt.Sprintf("making %s@%d live", name, number), reads, func(snap snapshot, c *change) error {
		n, err := liveName(snap, 0)
		if err != nil {
			return err
		}
		if v, err = load[adapters.Version](snap, 1, "a version"); err != nil || n.Live == number {
			return err
		}
		n.Live, n.UpdatedAt = number, snap.now
		if err := save(c, s.namesKey(tenant), name, n); err != nil {
			return err
		}
		return s.announce(c, snap, adapters.LiveMoved, tenant, name, number)
	})
	return v, err
}

// Delete is Store.Delete.
func (s *Store) Delete(ctx context.Context, tenant, name string, number int) error {
	if err := checkNames(tenant, name); err != nil {
		return fmt.Errorf("deleting an adapter: %w", err)
	}
	tenant = owner(tenant)
	doing := fmt.Sprintf("deleting %s@%d", name, number)
	reads := []at{{key: s.namesKey(tenant), field: name}}
	_, err := s.update(ctx, doing, reads, func(snap snapshot, c *change) error {
		n, err := liveName(snap, 0)
		if err != nil {
			return err
		}
		i := n.find(number)
		switch {
		case number != 0 && i < 0:
			return adapters.ErrNotFound
		case number == n.Live && len(n.Versions) > 1:
			return fmt.Errorf("%w: it is the live version", adapters.ErrConflict)
		}
		// The versions change only with the name's record, which the commit checks.
		_, list, err := s.adapter(ctx, doing, tenant, name)
		if err != nil {
			return err
		}
		c.frees = true
		n.UpdatedAt = snap.now
		kind := adapters.VersionDeleted
		if number != 0 && len(n.Versions) > 1 {
			n.Versions = slices.Delete(n.Versions, i, i+1)
		} else {
			kind, number, n.Live, n.Versions = adapters.AdapterDeleted, 0, 0, nil
		}
		for _, v := range list {
			if number == 0 || v.Number == number {
				s.dropVersion(c, v)
			}
		}
		if err := save(c, s.namesKey(tenant), name, n); err != nil {
			return err
		}
		return s.announce(c, snap, kind, tenant, name, number)
	})
	return err
}
