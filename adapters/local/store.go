package local

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"bhive/adapters"
)

// Options of Open. The zero value is good.
type Options struct {
	FeedLength int // changes that the feed reaches back; default: 10000

	// hook, where set, is called at every write point; an error it returns is the write's. For tests.
	hook func(point string) error
}

// Store implements adapters.Store.
type Store struct {
	dir  string
	o    Options
	db   *bbolt.DB
	done chan struct{} // closed by Close

	closeOnce sync.Once
	closeErr  error

	blobMu sync.RWMutex // see doc.go
	dirs   sync.Map     // directories of blobs whose names are durable

	mu      sync.Mutex
	changed chan struct{} // closed and replaced after every change of the feed
}

var _ adapters.Store = (*Store)(nil)

var (
	bucketBlobs    = []byte("blobs")    // tenant, sha → blobRecord
	bucketNames    = []byte("names")    // tenant, name → nameRecord
	bucketVersions = []byte("versions") // tenant, name, number → adapters.Version
	bucketFeed     = []byte("feed")     // sequence → adapters.Change
	bucketJobs     = []byte("jobs")     // tenant, id → adapters.Job
	bucketEvents   = []byte("events")   // tenant, id, sequence → adapters.Event
	bucketFiles    = []byte("files")    // tenant, id → adapters.File
	bucketValues   = []byte("values")   // tenant, key → revision (8 bytes), value
	bucketBasis    = []byte("basis")    // base hash → adapters.BasisRecord
	bucketFormat   = []byte("format")   // "version" → "1"
)

const lockWait = 300 * time.Millisecond

// Open opens (or creates) the data directory. It returns adapters.ErrStoreLocked while another process (or another
// Store) has it open, and adapters.ErrCorrupt for a database that is not a store's.
func Open(dir string, o Options) (*Store, error) {
	if o.FeedLength == 0 {
		o.FeedLength = 10000
	}
	s := &Store{dir: dir, o: o, done: make(chan struct{}), changed: make(chan struct{})}
	fail := func(err error) (*Store, error) {
		return nil, fmt.Errorf("opening the adapter store in %s: %w", dir, classify(err))
	}
	parents := namedIn(dir)
	for _, d := range []string{dir, s.blobDir(), s.tmpDir()} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return fail(err)
		}
	}
	for _, d := range parents {
		if err := syncDir(d); err != nil && !errors.Is(err, fs.ErrPermission) { // who may not read a directory cannot sync it
			return fail(err)
		}
	}
	db, err := s.openDB()
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return fail(adapters.ErrStoreLocked)
	case errors.Is(err, bolterrors.ErrInvalid), errors.Is(err, bolterrors.ErrVersionMismatch), errors.Is(err, bolterrors.ErrChecksum):
		return fail(fmt.Errorf("%w: store.db: %w", adapters.ErrCorrupt, err))
	case err != nil:
		return fail(err)
	}
	s.db = db
	if err := s.prepare(); err != nil {
		_ = db.Close()
		return fail(err)
	}
	return s, nil
}

// openDB opens the database. A new one comes to its place as a whole, and one that is cut short is refused: bbolt would read what is missing, which is a
// fault that ends the process, as it would be at every start after a first one on a full disk.
func (s *Store) openDB() (*bbolt.DB, error) {
	path := filepath.Join(s.dir, "store.db")
	o := bbolt.Options{Timeout: lockWait, FreelistType: bbolt.FreelistMapType}
	st, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		err = s.makeDB(path, o)
	case err == nil && st.Size() > 0:
		err = checkLength(path, st.Size(), o)
	}
	if err != nil {
		return nil, err
	}
	return bbolt.Open(path, 0o600, &o)
}

// makeDB makes an empty database.
func (s *Store) makeDB(path string, o bbolt.Options) error {
	f, err := os.CreateTemp(s.tmpDir(), "store.db")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }()
	_ = f.Close() // it is empty
	db, err := bbolt.Open(f.Name(), 0o600, &o)
	if err != nil {
		return err
	}
	if err := db.Close(); err != nil {
		return err
	}
	_ = os.Link(f.Name(), path) // never over another process's; where there are no links bbolt makes it in its place
	return nil
}

// checkLength says (ErrCorrupt) that a database is shorter than it says itself.
func checkLength(path string, size int64, o bbolt.Options) error {
	if size < 4*4096 { // bbolt's four first pages
		return fmt.Errorf("%w: store.db has only %d bytes", adapters.ErrCorrupt, size)
	}
	o.ReadOnly = true // reads nothing but the beginning
	db, err := bbolt.Open(path, 0o600, &o)
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }()
	return db.View(func(tx *bbolt.Tx) error {
		st, err := os.Stat(path) // by now: another process may have made it grow
		if err == nil && st.Size() < tx.Size() {
			err = fmt.Errorf("%w: store.db has %d bytes, not the %d that it should have at least", adapters.ErrCorrupt, st.Size(), tx.Size())
		}
		return err
	})
}

// namedIn are the directories that hold the names of dir and of those above it that are yet to be made. A crash that loses one of these names loses all
// that is below it.
func namedIn(dir string) (parents []string) {
	for {
		parent := filepath.Dir(dir)
		parents = append(parents, parent)
		if _, err := os.Stat(dir); err == nil || parent == dir {
			return parents
		}
		dir = parent
	}
}

// prepare makes the buckets and the reserve, and sweeps up what a crash left in tmp.
func (s *Store) prepare() error {
	for _, d := range []string{s.dir, s.blobDir()} {
		if err := syncDir(d); err != nil {
			return err
		}
	}
	dirs, err := os.ReadDir(s.blobDir())
	if err != nil {
		return err
	}
	for _, d := range dirs {
		s.dirs.Store(filepath.Join(s.blobDir(), d.Name()), struct{}{})
	}
	left, err := os.ReadDir(s.tmpDir())
	if err != nil {
		return err
	}
	for _, e := range left {
		if err := os.RemoveAll(filepath.Join(s.tmpDir(), e.Name())); err != nil {
			return err
		}
	}
	s.keepReserve()
	return s.free(func() error { return s.db.Update(makeBuckets) })
}

// makeBuckets makes the buckets that are missing and checks the format.
func makeBuckets(tx *bbolt.Tx) error {
	for _, b := range [][]byte{bucketBlobs, bucketNames, bucketVersions, bucketFeed, bucketJobs, bucketEvents, bucketFiles, bucketValues, bucketBasis, bucketFormat} {
		if _, err := tx.CreateBucketIfNotExists(b); err != nil {
			return err
		}
	}
	b := tx.Bucket(bucketFormat)
	switch v := b.Get([]byte("version")); string(v) {
	case "":
		return b.Put([]byte("version"), []byte("1"))
	case "1":
		return nil
	default:
		return fmt.Errorf("%w: store.db has format %q, not 1", adapters.ErrCorrupt, v)
	}
}

// Close closes the store; waiting Watches return ErrClosed. Idempotent.
func (s *Store) Close() error {
	s.closeOnce.Do(func() {
		close(s.done)
		s.closeErr = s.db.Close()
	})
	return s.closeErr
}

// Ping says whether the store can serve.
func (s *Store) Ping(ctx context.Context) error {
	return s.view(ctx, "pinging", func(*bbolt.Tx) error { return nil })
}

func (s *Store) hook(point string) error {
	if s.o.hook == nil {
		return nil
	}
	return s.o.hook(point)
}

// update runs one transaction of records. fn's error rolls it back.
func (s *Store) update(ctx context.Context, doing string, fn func(*bbolt.Tx) error) error {
	err := ctx.Err()
	if err == nil {
		err = s.transact(fn)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", doing, classify(err))
	}
	return nil
}

func (s *Store) transact(fn func(*bbolt.Tx) error) error {
	tx, err := s.db.Begin(true)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // after Commit it does nothing
	feed := tx.Bucket(bucketFeed).Sequence()
	if err := fn(tx); err != nil {
		return err
	}
	moved := tx.Bucket(bucketFeed).Sequence() != feed
	if err := s.hook("before commit"); err != nil {
		return err
	}
	if err := tx.Commit(); err != nil {
		return err
	}
	if moved {
		s.mu.Lock()
		close(s.changed)
		s.changed = make(chan struct{})
		s.mu.Unlock()
	}
	return s.hook("after commit")
}

func (s *Store) view(ctx context.Context, doing string, fn func(*bbolt.Tx) error) error {
	err := ctx.Err()
	if err == nil {
		err = s.db.View(fn)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", doing, classify(err))
	}
	return nil
}

var passed = []error{adapters.ErrNotFound, adapters.ErrExists, adapters.ErrConflict, adapters.ErrInvalidName, adapters.ErrCorrupt,
	adapters.ErrStoreUnavailable, adapters.ErrStoreLocked, adapters.ErrCursorLost, adapters.ErrClosed, adapters.ErrRank,
	context.Canceled, context.DeadlineExceeded}

// classify gives every error one of the package adapters' sentinels: what is none of theirs is the disk's.
func classify(err error) error {
	if errors.Is(err, bolterrors.ErrDatabaseNotOpen) || errors.Is(err, fs.ErrClosed) {
		return fmt.Errorf("%w: %w", adapters.ErrClosed, err)
	}
	for _, p := range passed {
		if errors.Is(err, p) {
			return err
		}
	}
	return fmt.Errorf("%w: %w", adapters.ErrStoreUnavailable, err)
}

// Keys join their parts by zero bytes, which no name contains; numbers are big-endian, so that they sort.
func key(parts ...string) []byte { return []byte(strings.Join(parts, "\x00")) }

func numbered(n uint64, parts ...string) []byte {
	return binary.BigEndian.AppendUint64(append(key(parts...), 0), n)
}

func owner(tenant string) string { return adapters.Owner(tenant) }

func checkNames(tenant string, names ...string) error { return adapters.CheckNames(tenant, names...) }

func load[T any](tx *bbolt.Tx, bucket, k []byte) (T, error) {
	var v T
	raw := tx.Bucket(bucket).Get(k)
	if raw == nil {
		return v, adapters.ErrNotFound
	}
	return v, decode(bucket, raw, &v)
}

func decode(bucket, raw []byte, v any) error {
	if err := json.Unmarshal(raw, v); err != nil {
		return fmt.Errorf("%w: record of %s: %w", adapters.ErrCorrupt, bucket, err)
	}
	return nil
}

func save(tx *bbolt.Tx, bucket, k []byte, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("%w: record for %s: %w", adapters.ErrCorrupt, bucket, err)
	}
	return tx.Bucket(bucket).Put(k, raw)
}

// scan calls fn for the records whose key begins with prefix, in order of keys.
func scan[T any](tx *bbolt.Tx, bucket, prefix []byte, fn func(k []byte, v T) error) error {
	c := tx.Bucket(bucket).Cursor()
	for k, raw := c.Seek(prefix); k != nil && bytes.HasPrefix(k, prefix); k, raw = c.Next() {
		var v T
		if err := decode(bucket, raw, &v); err != nil {
			return err
		}
		if err := fn(k, v); err != nil {
			return err
		}
	}
	return nil
}

// removeAll deletes all keys that begin with prefix.
func removeAll(tx *bbolt.Tx, bucket, prefix []byte) error {
	var keys [][]byte
	c := tx.Bucket(bucket).Cursor()
	for k, _ := c.Seek(prefix); k != nil && bytes.HasPrefix(k, prefix); k, _ = c.Next() {
		keys = append(keys, bytes.Clone(k))
	}
	for _, k := range keys {
		if err := tx.Bucket(bucket).Delete(k); err != nil {
			return err
		}
	}
	return nil
}

// tenantPrefix selects a tenant's records, or everybody's.
func tenantPrefix(tenant string) ([]byte, error) {
	if tenant == adapters.AllTenants {
		return nil, nil
	}
	return key(owner(tenant), ""), checkNames(tenant)
}

func now() time.Time { return time.Now().UTC() }
