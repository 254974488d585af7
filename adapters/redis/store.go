package redis

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"bhive/adapters"
)

// Options of Open. The zero value of each field is its default.
type Options struct {
	Timeout     time.Duration // for one call, but for a blob one chunk; default: 2 s
	FeedLength  int           // changes that the feed reaches back; default: 10000
	ChunkBytes  int           // of a blob's chunk, at most MaxChunk; default: 1 MiB
	UploadGrace time.Duration // after which a blob that is still being put counts as abandoned, if no chunk came; default: 1 h
	SpoolBytes  int64         // largest blob that is opened in memory and not in a temporary file; default: 4 MiB
	TempDir     string        // of those files; default: the system's
	Log         *slog.Logger  // for warnings about Redis' settings; default: none
}

// MaxChunk is the largest Options.ChunkBytes.
const MaxChunk = 64 << 20

func (o *Options) fill() error {
	if o.Timeout < 0 || o.FeedLength < 0 || o.ChunkBytes < 0 || o.ChunkBytes > MaxChunk || o.UploadGrace < 0 || o.SpoolBytes < 0 {
		return fmt.Errorf("options %+v: none may be negative, ChunkBytes at most %d", *o, MaxChunk)
	}
	o.Timeout = cmp.Or(o.Timeout, 2*time.Second)
	o.FeedLength = cmp.Or(o.FeedLength, 10000)
	o.ChunkBytes = cmp.Or(o.ChunkBytes, 1<<20)
	o.UploadGrace = cmp.Or(o.UploadGrace, time.Hour)
	o.SpoolBytes = cmp.Or(o.SpoolBytes, 4<<20)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return nil
}

// Store implements adapters.Store.
type Store struct {
	prefix string
	o      Options
	client redis.UniversalClient
	done   chan struct{} // closed by Close

	closeOnce sync.Once
	closeErr  error

	mu      sync.Mutex
	changed chan struct{} // closed and replaced when the feed may have moved, or could not be followed
	follows sync.WaitGroup
	started bool // the follower
}

var _ adapters.Store = (*Store)(nil)

// Open connects to the Redis that rawURL names (see ParseURL) and checks its version and settings. It returns adapters.ErrStoreUnavailable
// where Redis cannot be reached, adapters.ErrUnsupported for a Redis before 7, and adapters.ErrCorrupt for a registry of another format.
func Open(ctx context.Context, rawURL string, o Options) (*Store, error) {
	address, err := ParseURL(rawURL)
	if err == nil {
		err = o.fill()
	}
	if err != nil {
		return nil, fmt.Errorf("opening the adapter store: %w", err)
	}
	u := address.options
	u.ContextTimeoutEnabled = true
	u.DialTimeout, u.ReadTimeout, u.WriteTimeout, u.PoolTimeout = o.Timeout, o.Timeout, o.Timeout, o.Timeout
	u.MaxRetries, u.DialerRetries = -1, 1 // Store.retry does it
	u.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	s := &Store{prefix: address.prefix, o: o, client: redis.NewUniversalClient(&u), done: make(chan struct{}), changed: make(chan struct{})}
	if err := s.prepare(ctx); err != nil {
		_ = s.Close()
		return nil, fmt.Errorf("opening the adapter store in %s: %w", address, err)
	}
	return s, nil
}

func (s *Store) prepare(ctx context.Context) error {
	return s.view(ctx, "checking Redis", func(ctx context.Context) error {
		if err := s.client.SetNX(ctx, s.meta("format"), "1", 0).Err(); err != nil {
			return err
		}
		format, err := s.client.Get(ctx, s.meta("format")).Result()
		if err != nil {
			return err
		}
		if format != "1" {
			return fmt.Errorf("%w: the registry has format %q, not 1", adapters.ErrCorrupt, format)
		}
		if _, err := s.read(ctx, nil); err != nil { // a user without the rights shows here, and not at the first write
			return err
		}
		warnings := map[string]bool{}
		var mu sync.Mutex
		check := func(ctx context.Context, node *redis.Client) error {
			list, err := checkServer(ctx, node)
			mu.Lock()
			defer mu.Unlock()
			for _, w := range list {
				warnings[w] = true
			}
			return err
		}
		switch c := s.client.(type) {
		case *redis.ClusterClient:
			err = c.ForEachMaster(ctx, check)
		case *redis.Client:
			err = check(ctx, c)
		}
		for _, w := range slices.Sorted(maps.Keys(warnings)) {
			s.o.Log.Warn("registry: " + w)
		}
		return err
	})
}

// checkServer returns what a server's settings lack for a registry.
func checkServer(ctx context.Context, c *redis.Client) (warnings []string, err error) {
	text, err := c.Info(ctx, "server", "persistence", "memory").Result()
	if err != nil {
		return nil, err
	}
	info := map[string]string{}
	for line := range strings.Lines(text) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			info[k] = v
		}
	}
	major, _, _ := strings.Cut(info["redis_version"], ".")
	if n, err := strconv.Atoi(major); err == nil && n < 7 {
		return nil, fmt.Errorf("%w: Redis %s; 7 or later is needed", adapters.ErrUnsupported, info["redis_version"])
	}
	fsync := ""
	if settings, err := c.ConfigGet(ctx, "appendfsync").Result(); err == nil { // where it is allowed
		fsync = settings["appendfsync"]
	}
	switch {
	case info["aof_enabled"] == "0":
		warnings = append(warnings, "Redis has appendonly no: what was acknowledged may be lost when it ends; set appendonly yes")
	case fsync == "no":
		warnings = append(warnings, "Redis has appendfsync no: a crash of its machine may lose what was acknowledged; set always, or everysec for at most a second")
	}
	if p := info["maxmemory_policy"]; p != "" && p != "noeviction" {
		warnings = append(warnings, "Redis has maxmemory-policy "+p+": it may throw away parts of the registry; set noeviction")
	}
	return warnings, nil
}

// Ping says whether the store can serve.
func (s *Store) Ping(ctx context.Context) error {
	return s.view(ctx, "pinging", func(ctx context.Context) error { return s.client.Exists(ctx, s.meta("format")).Err() })
}

// Close closes the store; waiting Watches return ErrClosed. Idempotent.
func (s *Store) Close() error {
	s.closeOnce.Do(func() {
		s.mu.Lock()
		close(s.done)
		s.mu.Unlock()
		s.closeErr = s.client.Close()
		s.follows.Wait()
	})
	return s.closeErr
}

// meta is a key of the metadata; all of them lie in one slot.
func (s *Store) meta(name string) string { return "{" + s.prefix + "}:" + name }

func (s *Store) blobKey(id string) string { return s.prefix + ":blob:{" + id + "}" }

func owner(tenant string) string { return adapters.Owner(tenant) }

func checkNames(tenant string, names ...string) error { return adapters.CheckNames(tenant, names...) }

func encode(what string, v any) (string, error) {
	raw, err := json.Marshal(v)
	if err != nil {
		return "", fmt.Errorf("%w: record for %s: %w", adapters.ErrCorrupt, what, err)
	}
	return string(raw), nil
}

func decode[T any](what, raw string) (T, error) {
	var v T
	if err := json.Unmarshal([]byte(raw), &v); err != nil {
		return v, fmt.Errorf("%w: record of %s: %w", adapters.ErrCorrupt, what, err)
	}
	return v, nil
}

// load decodes what a snapshot has in place i: ErrNotFound where it has nothing.
func load[T any](snap snapshot, i int, what string) (T, error) {
	raw, ok := snap.raw(i)
	if !ok {
		var none T
		return none, adapters.ErrNotFound
	}
	return decode[T](what, raw)
}

// save writes a record.
func save(c *change, key, field string, v any) error {
	raw, err := encode(key, v)
	if err == nil {
		c.set(key, field, raw)
	}
	return err
}

// fetch returns one record.
func fetch[T any](ctx context.Context, s *Store, doing, key, field string) (v T, err error) {
	err = s.view(ctx, doing, func(ctx context.Context) error {
		raw, err := s.client.HGet(ctx, key, field).Result()
		if err == nil {
			v, err = decode[T](key, raw)
		}
		return err
	})
	return v, err
}

// fetchAll returns all records of a kind that a tenant, or AllTenants, has.
func fetchAll[T any](ctx context.Context, s *Store, doing, kind, tenant string) (list []T, err error) {
	if tenant != adapters.AllTenants {
		if err := checkNames(tenant); err != nil {
			return nil, fmt.Errorf("%s: %w", doing, err)
		}
	}
	err = s.view(ctx, doing, func(ctx context.Context) error {
		list = nil
		tenants := []string{owner(tenant)}
		if tenant == adapters.AllTenants {
			if tenants, err = s.client.SMembers(ctx, s.meta("tenants")).Result(); err != nil || len(tenants) == 0 {
				return err
			}
		}
		queries := make([]query, len(tenants))
		for i, t := range tenants {
			queries[i] = query{"HVALS", s.meta(kind + ":" + t), "", ""}
		}
		all, err := s.query(ctx, queries...)
		if err != nil {
			return err
		}
		for i, t := range tenants {
			for _, raw := range texts(all[i]) {
				v, err := decode[T](kind+" of "+t, raw)
				if err != nil {
					return err
				}
				list = append(list, v)
			}
		}
		return nil
	})
	return list, err
}

// notFoundAs names what was not found.
func notFoundAs(err error, what string) error {
	if errors.Is(err, adapters.ErrNotFound) {
		return fmt.Errorf("%s: %w", what, err)
	}
	return err
}
