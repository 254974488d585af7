package redis

import (
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"bhive/adapters"
)

// A damaged blob is ErrCorrupt and named; others are unharmed, and putting it again heals it.
func TestDamagedBlob(t *testing.T) {
	srv := startServer(t)
	s, raw := openTest(t, srv.url(), Options{ChunkBytes: 10}), srv.client(t)
	content, other := strings.Repeat("0123456789", 3)+"tail", strings.Repeat("abcdefghij", 3)+"tail"
	good := put(t, s, other)
	chunks := func(sha string) string {
		t.Helper()
		record, err := raw.HGet(ctx, s.meta("contents"), sha).Result()
		if err != nil {
			t.Fatal(err)
		}
		c, err := decodeContent(record)
		if err != nil {
			t.Fatal(err)
		}
		return s.blobKey(c.ID)
	}
	for name, c := range map[string]struct {
		damage func(key, sha string) error
		says   string
	}{
		"cut":          {func(k, _ string) error { return raw.HSet(ctx, k, "3", "tai").Err() }, "chunk 3 of blob"},
		"longer":       {func(k, _ string) error { return raw.HSet(ctx, k, "3", "tails").Err() }, "chunk 3 of blob"},
		"chunk gone":   {func(k, _ string) error { return raw.HDel(ctx, k, "1").Err() }, "chunk 1 of blob"},
		"chunks gone":  {func(k, _ string) error { return raw.Del(ctx, k).Err() }, "chunk 0 of blob"},
		"bit":          {func(k, _ string) error { return raw.HSet(ctx, k, "2", "012345678X").Err() }, "has SHA-256"},
		"swapped":      {func(k, _ string) error { return raw.Copy(ctx, chunks(good), k, 0, true).Err() }, "has SHA-256"},
		"another type": {func(k, _ string) error { raw.Del(ctx, k); return raw.Set(ctx, k, "x", 0).Err() }, "WRONGTYPE"},
		"no record":    {func(_, sha string) error { return raw.HDel(ctx, s.meta("contents"), sha).Err() }, "content is gone"},
		"bad record":   {func(_, sha string) error { return raw.HSet(ctx, s.meta("contents"), sha, "{").Err() }, "record of a blob"},
		"huge record": {func(k, sha string) error {
			return raw.HSet(ctx, s.meta("contents"), sha, `{"id":"x","bytes":4000000000000000000,"chunk":1}`).Err()
		}, "chunk 0 of blob"},
	} {
		sha := put(t, s, content)
		if err := c.damage(chunks(sha), sha); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		_, err := read(s, sha)
		if !errors.Is(err, adapters.ErrCorrupt) || !strings.Contains(err.Error(), sha) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
		if got, err := read(s, good); err != nil || got != other {
			t.Errorf("%s: another blob: %q, %v", name, got, err)
		}
		put(t, s, content)
		if got, err := read(s, sha); err != nil || got != content {
			t.Errorf("%s, put again: %q, %v", name, got, err)
		}
	}
	if _, err := s.GC(ctx, 0); err != nil { // nothing is left of what was replaced, but where the record of it was lost
		t.Fatal(err)
	}
	keys, err := raw.Keys(ctx, "bhive:blob:*").Result()
	if err != nil || len(keys) != 3 {
		t.Errorf("%q, %v", keys, err)
	}
}

// Garbage in a record is ErrCorrupt, and a registry of another format is not touched.
func TestDamagedRecords(t *testing.T) {
	srv := startServer(t)
	s, raw := openTest(t, srv.url(), Options{}), srv.client(t)
	publish(t, s, "a", "x")
	publish(t, s, "b", "x")
	if err := raw.HSet(ctx, s.versionsKey("default", "a"), "1", "[").Err(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(ctx, "", "a", 0); !errors.Is(err, adapters.ErrCorrupt) {
		t.Errorf("a version: %v", err)
	}
	if _, err := s.Get(ctx, "", "b", 0); err != nil {
		t.Errorf("another: %v", err)
	}
	raw.HSet(ctx, s.namesKey("default"), "a", `"x"`)
	if _, err := s.List(ctx, ""); !errors.Is(err, adapters.ErrCorrupt) {
		t.Errorf("a name: %v", err)
	}
	raw.HSet(ctx, s.meta("values:default"), "k", "short")
	if _, _, err := s.GetValue(ctx, "", "k"); !errors.Is(err, adapters.ErrCorrupt) {
		t.Errorf("a value: %v", err)
	}
	raw.Set(ctx, "{other}:format", "2", 0)
	if _, err := Open(ctx, srv.url()+"?prefix=other", Options{}); !errors.Is(err, adapters.ErrCorrupt) {
		t.Errorf("another format: %v", err)
	}
}

// A cursor that the feed does not reach, or that belongs to a history which Redis lost, is ErrCursorLost.
func TestCursorLost(t *testing.T) {
	srv := startServer(t)
	s, raw := openTest(t, srv.url(), Options{FeedLength: 3}), srv.client(t)
	watch := func(cursor string) []int {
		t.Helper()
		list, err := s.Watch(ctx, cursor)
		if err != nil {
			t.Errorf("Watch(%q): %v", cursor, err)
		}
		var numbers []int
		for _, c := range list {
			numbers = append(numbers, c.Number)
		}
		return numbers
	}
	lost := func(cursor, what string) {
		t.Helper()
		if c, err := s.Watch(ctx, cursor); !errors.Is(err, adapters.ErrCursorLost) {
			t.Errorf("%s: %+v, %v", what, c, err)
		}
	}
	var cursors []string
	for range 6 {
		c, err := s.Cursor(ctx)
		if err != nil {
			t.Fatal(err)
		}
		cursors = append(cursors, c)
		publish(t, s, "a", "x")
	}
	lost(cursors[0], "the beginning")
	lost(cursors[2], "before the cut")
	if got := watch(cursors[3]); !slices.Equal(got, []int{4, 5, 6}) {
		t.Errorf("from the cut on: %v", got)
	}
	if got := watch(""); !slices.Equal(got, []int{4, 5, 6}) {
		t.Errorf("from the beginning: %v", got)
	}
	for _, bad := range []string{"x", "1", "-", "1-", "-1-2", "01-2", "1-2-3", "99999999999999999999-1", "9-9", "18446744073709551615-1"} {
		lost(bad, bad)
	}
	// A Watch that waits in a feed that vanishes comes to know of it.
	end, err := s.Cursor(ctx)
	if err != nil {
		t.Fatal(err)
	}
	waiting := make(chan error, 1)
	go func() { _, err := s.Watch(ctx, end); waiting <- err }()
	time.Sleep(50 * time.Millisecond)
	if err := raw.FlushAll(ctx).Err(); err != nil {
		t.Fatal(err)
	}
	if err := <-waiting; !errors.Is(err, adapters.ErrCursorLost) {
		t.Errorf("a Watch that waited: %v", err)
	}
	for range 6 {
		publish(t, s, "a", "y")
	}
	lost(end, "the same number in another history")
}

// GC removes uploads that were given up, and one that goes on in spite of it is refused.
func TestAbandonedUpload(t *testing.T) {
	srv := startServer(t)
	s, raw := openTest(t, srv.url(), Options{ChunkBytes: 4, UploadGrace: time.Millisecond}), srv.client(t)
	source := &stalling{resume: make(chan struct{}), stalled: make(chan struct{})}
	result := make(chan error, 1)
	go func() { _, err := s.PutBlob(ctx, "", source); result <- err }()
	<-source.stalled
	time.Sleep(5 * time.Millisecond)
	if _, err := s.GC(ctx, 0); err != nil {
		t.Fatal(err)
	}
	close(source.resume)
	if err := <-result; !errors.Is(err, adapters.ErrStoreUnavailable) {
		t.Errorf("%v", err)
	}
	put(t, s, "content")
	if _, err := s.GC(ctx, time.Hour); err != nil {
		t.Fatal(err)
	}
	keys, err := raw.Keys(ctx, "bhive:blob:*").Result()
	if err != nil || len(keys) != 1 {
		t.Errorf("chunks: %q, %v", keys, err)
	}
	if n, err := raw.HLen(ctx, s.meta("orphans")).Result(); err != nil || n != 0 {
		t.Errorf("%d orphans, %v", n, err)
	}
}

// stalling is a source that waits before its last chunk.
type stalling struct {
	n               int
	stalled, resume chan struct{}
}

func (s *stalling) Read(p []byte) (int, error) {
	if s.n++; s.n == 3 {
		close(s.stalled)
		<-s.resume
	}
	if s.n > 3 {
		return 0, errors.New("the source broke") // whatever the store has found before
	}
	return copy(p, "four"), nil
}

// An upload whose chunks were marked to be removed cannot go on, not even where the server that marked them died before it forgot them.
func TestAbandonedGoesNotOn(t *testing.T) {
	srv := startServer(t)
	s, raw := openTest(t, srv.url(), Options{ChunkBytes: 4, UploadGrace: time.Nanosecond}), srv.client(t)
	marked := 0
	info, err := s.PutBlob(ctx, "", readerFunc(func(p []byte) (int, error) {
		if marked > 0 {
			return 0, io.EOF
		}
		orphans, err := raw.HGetAll(ctx, s.meta("orphans")).Result()
		if err != nil {
			return 0, err
		}
		for id := range orphans {
			if n, err := raw.HLen(ctx, s.blobKey(id)).Result(); err != nil || n != 1 {
				continue
			}
			marked++
			if err := errors.Join(raw.HSet(ctx, s.meta("orphans"), id, "0").Err(), raw.Unlink(ctx, s.blobKey(id)).Err()); err != nil {
				return 0, err
			}
		}
		return copy(p, "some"), nil
	}))
	if marked != 1 {
		t.Fatalf("%d uploads were marked, %v", marked, err)
	}
	if !errors.Is(err, adapters.ErrStoreUnavailable) {
		_, unread := read(s, info.SHA256)
		t.Errorf("acknowledged: %+v, %v; read back: %v", info, err, unread)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
