package local

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/renameio/v2"
	"go.etcd.io/bbolt"

	"bhive/adapters"
)

type blobRecord struct {
	Bytes int64     `json:"bytes"`
	PutAt time.Time `json:"put_at"`
}

func (s *Store) blobDir() string { return filepath.Join(s.dir, "blobs") }
func (s *Store) tmpDir() string  { return filepath.Join(s.dir, "tmp") }

func (s *Store) blobPath(sha string) string { return filepath.Join(s.blobDir(), sha[:2], sha) }

func checkSHA(sha string) error {
	if len(sha) != 2*sha256.Size || strings.Trim(sha, "0123456789abcdef") != "" {
		return fmt.Errorf("%w: it is not a SHA-256 in hex", adapters.ErrInvalidName)
	}
	return nil
}

// syncDir makes the names in a directory durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// source reads a blob's content and stops when the context ends. It keeps its own errors apart from the disk's.
type source struct {
	ctx context.Context
	r   io.Reader
	err error
}

func (s *source) Read(p []byte) (int, error) {
	if s.err == nil {
		s.err = s.ctx.Err()
	}
	if s.err != nil { // also where the reader, asked once more, would say that it ends
		return 0, s.err
	}
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}

// PutBlob is Store.PutBlob.
func (s *Store) PutBlob(ctx context.Context, tenant string, r io.Reader) (info adapters.BlobInfo, err error) {
	err = s.putBlob(ctx, tenant, r, func(i adapters.BlobInfo) error {
		info = i
		return s.update(ctx, "recording it", func(tx *bbolt.Tx) error { return recordBlob(tx, owner(tenant), info) })
	})
	if err != nil {
		err = fmt.Errorf("storing a blob: %w", err)
	}
	return info, err
}

func recordBlob(tx *bbolt.Tx, tenant string, info adapters.BlobInfo) error {
	return save(tx, bucketBlobs, key(tenant, info.SHA256), blobRecord{info.Bytes, now()})
}

// putBlob makes what r yields a durable file in its place, and has it recorded before GC can meet it.
func (s *Store) putBlob(ctx context.Context, tenant string, r io.Reader, record func(adapters.BlobInfo) error) error {
	if err := checkNames(tenant); err != nil {
		return err
	}
	select {
	case <-s.done:
		return adapters.ErrClosed
	default:
	}
	src := &source{ctx: ctx, r: r}
	f, info, err := s.write(src)
	if f != nil {
		defer func() { _ = f.Cleanup() }() // after the rename it does nothing
	}
	if src.err != nil {
		return fmt.Errorf("reading its content: %w", src.err)
	}
	if err != nil {
		return classify(err)
	}
	s.blobMu.RLock()
	defer s.blobMu.RUnlock()
	if err := s.place(f, info); err != nil {
		return classify(err)
	}
	return record(info)
}

// write makes a synced temporary file of what r yields. The file, where there is one, is the caller's to clean up.
func (s *Store) write(r io.Reader) (*renameio.PendingFile, adapters.BlobInfo, error) {
	f, err := renameio.NewPendingFile(filepath.Join(s.tmpDir(), "blob"), renameio.WithTempDir(s.tmpDir()), renameio.WithPermissions(0o600))
	if err != nil {
		return nil, adapters.BlobInfo{}, err
	}
	if err := s.hook("blob created"); err != nil {
		return f, adapters.BlobInfo{}, err
	}
	k := &sink{f: f.File, s: s}
	if err := k.copyFrom(r); err != nil {
		return f, k.info, err
	}
	if err := f.Sync(); err != nil {
		return f, k.info, err
	}
	return f, k.info, s.hook("blob synced")
}

// place renames a synced temporary file to the blob's place and makes the name durable. Where the same content came before it is replaced all the same:
// what the disk has made of that file nobody knows.
func (s *Store) place(f *renameio.PendingFile, info adapters.BlobInfo) error {
	path := s.blobPath(info.SHA256)
	if err := s.makeDir(filepath.Dir(path)); err != nil {
		return err
	}
	if err := f.Chmod(0o600); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	if err := s.hook("blob renamed"); err != nil {
		return err
	}
	if err := syncDir(filepath.Dir(path)); err != nil {
		return err
	}
	return s.hook("blob directory synced")
}

// makeDir makes a directory of blobs and its name durable; one that this process has made durable is only remembered.
func (s *Store) makeDir(dir string) error {
	if _, ok := s.dirs.Load(dir); ok {
		return nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := syncDir(s.blobDir()); err != nil {
		return err
	}
	s.dirs.Store(dir, struct{}{})
	return s.hook("blob directory made")
}

type blobReader struct {
	*os.File
	size int64
}

func (b blobReader) Size() int64 { return b.size }

// OpenBlob is Store.OpenBlob.
func (s *Store) OpenBlob(ctx context.Context, tenant, sha string) (adapters.BlobReader, error) {
	doing := "opening blob " + sha
	if err := checkSHA(sha); err != nil {
		return nil, fmt.Errorf("opening a blob: %w", err)
	}
	if err := checkNames(tenant); err != nil {
		return nil, fmt.Errorf("%s: %w", doing, err)
	}
	s.blobMu.RLock()
	defer s.blobMu.RUnlock()
	var rec blobRecord
	if err := s.view(ctx, doing, func(tx *bbolt.Tx) (err error) {
		rec, err = load[blobRecord](tx, bucketBlobs, key(owner(tenant), sha))
		return err
	}); err != nil {
		return nil, err
	}
	f, err := os.Open(s.blobPath(sha))
	if os.IsNotExist(err) {
		return nil, fmt.Errorf("%s: %w: its file is gone", doing, adapters.ErrCorrupt)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", doing, classify(err))
	}
	st, err := f.Stat()
	if err == nil && st.Size() != rec.Bytes {
		err = fmt.Errorf("%w: its file has %d bytes, not %d", adapters.ErrCorrupt, st.Size(), rec.Bytes)
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("%s: %w", doing, classify(err))
	}
	return blobReader{f, rec.Bytes}, nil
}

// GC is Store.GC. It also removes files that a crash left without a record.
func (s *Store) GC(ctx context.Context, grace time.Duration) (adapters.GCReport, error) {
	var report adapters.GCReport
	dead, err := s.takeOut(ctx, grace)
	// To remove a large file takes a while, in which blobs are opened and put.
	for _, f := range dead {
		st, failed := os.Stat(f)
		if failed == nil {
			failed = os.Remove(f)
		}
		if failed == nil {
			report.Blobs++
			report.Bytes += st.Size()
			failed = s.hook("blob removed")
		}
		if failed != nil {
			err = errors.Join(err, fmt.Errorf("collecting garbage: %w", classify(failed)))
		}
	}
	s.keepReserve()
	return report, err
}

// takeOut deletes the records of blobs that are garbage and moves their files to tmp, from where a crash's are removed too. It returns the files there.
func (s *Store) takeOut(ctx context.Context, grace time.Duration) (dead []string, err error) {
	s.blobMu.Lock()
	defer s.blobMu.Unlock()
	kept := map[string]bool{}
	err = s.deletion(ctx, "collecting garbage", func(tx *bbolt.Tx) error {
		used, err := references(tx)
		if err != nil {
			return err
		}
		var dead [][]byte
		err = scan(tx, bucketBlobs, nil, func(k []byte, r blobRecord) error {
			if used[string(k)] || now().Sub(r.PutAt) < grace {
				kept[string(k[len(k)-2*sha256.Size:])] = true
			} else {
				dead = append(dead, append([]byte(nil), k...))
			}
			return nil
		})
		for _, k := range dead {
			if err == nil {
				err = tx.Bucket(bucketBlobs).Delete(k)
			}
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	files, err := s.blobFiles()
	for _, f := range files {
		if kept[filepath.Base(f)] {
			continue
		}
		to := filepath.Join(s.tmpDir(), "dead"+rand.Text())
		if err == nil {
			err = s.free(func() error { return os.Rename(f, to) })
		}
		if err == nil {
			dead = append(dead, to)
			err = s.hook("blob taken out")
		}
	}
	if err != nil {
		err = fmt.Errorf("collecting garbage: %w", classify(err))
	}
	return dead, err
}

// blobFiles are the paths of all blobs. They are not found by a pattern: the store's own directory may have a name that reads as one.
func (s *Store) blobFiles() (files []string, err error) {
	dirs, err := os.ReadDir(s.blobDir())
	for _, d := range dirs {
		if len(d.Name()) != 2 || !d.IsDir() {
			continue
		}
		dir := filepath.Join(s.blobDir(), d.Name())
		list, err := os.ReadDir(dir)
		if err != nil {
			return nil, err
		}
		for _, f := range list {
			files = append(files, filepath.Join(dir, f.Name()))
		}
	}
	return files, err
}

// references are the keys (tenant, sha) of all blobs that a record refers to.
func references(tx *bbolt.Tx) (map[string]bool, error) {
	used := map[string]bool{}
	use := func(tenant, sha string) { used[string(key(tenant, sha))] = true }
	if err := scan(tx, bucketVersions, nil, func(_ []byte, v adapters.Version) error {
		use(v.Tenant, v.SHA256)
		return nil
	}); err != nil {
		return nil, err
	}
	if err := scan(tx, bucketJobs, nil, func(_ []byte, j adapters.Job) error {
		for _, sha := range j.Blobs {
			use(j.Tenant, sha)
		}
		return nil
	}); err != nil {
		return nil, err
	}
	if err := scan(tx, bucketFiles, nil, func(_ []byte, f adapters.File) error {
		use(f.Tenant, f.SHA256)
		return nil
	}); err != nil {
		return nil, err
	}
	return used, scan(tx, bucketBasis, nil, func(_ []byte, b adapters.BasisRecord) error {
		use(adapters.DefaultTenant, b.SHA256)
		return nil
	})
}

// blobOf returns the size of a blob that is the tenant's.
func blobOf(tx *bbolt.Tx, tenant, sha string) (int64, error) {
	if err := checkSHA(sha); err != nil {
		return 0, fmt.Errorf("blob: %w", err)
	}
	r, err := load[blobRecord](tx, bucketBlobs, key(tenant, sha))
	if err != nil {
		return 0, fmt.Errorf("blob %s: %w", sha, err)
	}
	return r.Bytes, nil
}
