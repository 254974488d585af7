package redis

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"bhive/adapters"
)

// announce appends to the change feed and cuts its tail.
func (s *Store) announce(c *change, snap snapshot, kind adapters.ChangeKind, tenant, name string, number int) error {
	raw, err := encode("the feed", adapters.Change{Kind: kind, Tenant: tenant, Name: name, Number: number, At: snap.now})
	if err == nil {
		c.add("announce", s.meta("feed"), raw, s.o.FeedLength)
	}
	return err
}

// cursor is a stream id: the sequence number shows gaps, the time tells entries apart that two histories gave the same number.
type cursor struct{ seq, micros uint64 }

func (c cursor) String() string { return fmt.Sprintf("%d-%d", c.seq, c.micros) }

// parseCursor reads what cursor.String wrote.
func parseCursor(text string) (cursor, bool) {
	a, b, _ := strings.Cut(text, "-")
	seq, err1 := strconv.ParseUint(a, 10, 64)
	micros, err2 := strconv.ParseUint(b, 10, 64)
	c := cursor{seq, micros}
	return c, err1 == nil && err2 == nil && c.String() == text && seq < 1<<63
}

// Cursor is Store.Cursor.
func (s *Store) Cursor(ctx context.Context) (string, error) {
	end := cursor{}.String()
	err := s.view(ctx, "reading the change feed", func(ctx context.Context) error {
		last, err := s.client.XRevRangeN(ctx, s.meta("feed"), "+", "-", 1).Result()
		if err == nil && len(last) > 0 {
			end = last[0].ID
		}
		return err
	})
	return end, err
}

const maxChanges = 1000 // returned by one Watch

// Watch is Store.Watch.
func (s *Store) Watch(ctx context.Context, after string) ([]adapters.Change, error) {
	const doing = "following the change feed"
	var from cursor
	if after != "" {
		var ok bool
		if from, ok = parseCursor(after); !ok {
			return nil, fmt.Errorf("%s: %w: this feed never gave out the cursor", doing, adapters.ErrCursorLost)
		}
	}
	for {
		s.mu.Lock()
		changed := s.changed
		s.mu.Unlock()
		list, err := s.changesAfter(ctx, doing, from, after == "")
		if err != nil || len(list) > 0 {
			return list, err
		}
		s.follow(from)
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fmt.Errorf("%s: %w", doing, ctx.Err())
		case <-s.done:
			return nil, fmt.Errorf("%s: %w", doing, adapters.ErrClosed)
		}
	}
}

// changesAfter reads the feed from the cursor's own entry on, which must still be the one it was or have been the last that was cut off.
func (s *Store) changesAfter(ctx context.Context, doing string, from cursor, beginning bool) (list []adapters.Change, err error) {
	err = s.view(ctx, doing, func(ctx context.Context) error {
		list = nil
		entries, err := s.client.XRangeN(ctx, s.meta("feed"), strconv.FormatUint(from.seq, 10), "+", maxChanges+1).Result()
		if err != nil {
			return err
		}
		for i, e := range entries {
			id, ok := parseCursor(e.ID)
			if !ok {
				return fmt.Errorf("%w: the feed has an entry %q", adapters.ErrCorrupt, e.ID)
			}
			if i == 0 && !beginning && id != from && id.seq != from.seq+1 {
				return adapters.ErrCursorLost
			}
			if id == from {
				continue
			}
			raw, _ := e.Values["change"].(string)
			c, err := decode[adapters.Change]("the feed", raw)
			if err != nil {
				return err
			}
			c.Cursor = e.ID
			list = append(list, c)
		}
		if len(entries) == 0 && from.seq > 0 {
			return fmt.Errorf("%w: the feed ends before the cursor", adapters.ErrCursorLost)
		}
		return nil
	})
	return list, err
}

// follow starts the follower behind a cursor, unless it runs.
func (s *Store) follow(from cursor) {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.done:
		return
	default:
	}
	if !s.started {
		s.started = true
		s.follows.Go(func() { s.followFeed(from) })
	}
}

const (
	followBlock = time.Second // of one XREAD
	followRetry = 100 * time.Millisecond
)

// followFeed wakes all Watches whenever the feed grows, and when it cannot tell: they look for themselves. It ends with Close.
func (s *Store) followFeed(from cursor) {
	last := from.String()
	for s.usable(context.Background()) == nil {
		ctx, cancel := context.WithTimeout(context.Background(), followBlock+s.o.Timeout)
		streams, err := s.client.XRead(ctx, &redis.XReadArgs{Streams: []string{s.meta("feed"), last}, Block: followBlock}).Result()
		cancel()
		switch {
		case err == redis.Nil: // nothing new; but a feed that lost entries would never say so
			end, err := s.Cursor(context.Background())
			if err == nil && end == last {
				continue
			}
			if err == nil {
				last = end
			}
		case err == nil && len(streams) == 1 && len(streams[0].Messages) > 0:
			m := streams[0].Messages
			last = m[len(m)-1].ID
		default:
			select {
			case <-s.done:
			case <-time.After(followRetry):
			}
		}
		s.mu.Lock()
		close(s.changed)
		s.changed = make(chan struct{})
		s.mu.Unlock()
	}
}
