package redis

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"bhive/adapters"
)

// blobRecord says that a tenant has put a blob.
type blobRecord struct {
	Bytes int64     `json:"bytes"`
	PutAt time.Time `json:"put_at"`
}

// contentRecord says where a blob's chunks are.
type contentRecord struct {
	ID    string `json:"id"`
	Bytes int64  `json:"bytes"`
	Chunk int64  `json:"chunk"` // bytes of each chunk but the last
}

func (c contentRecord) chunks() int64 {
	return (c.Bytes + c.Chunk - 1) / c.Chunk
}

func decodeContent(raw string) (contentRecord, error) {
	c, err := decode[contentRecord]("a blob", raw)
	if err == nil && (c.ID == "" || c.Bytes < 0 || c.Chunk < 1 || c.Chunk > MaxChunk || c.Bytes > 1<<62) {
		err = fmt.Errorf("%w: record of a blob: %+v", adapters.ErrCorrupt, c)
	}
	return c, err
}

func checkSHA(sha string) error {
	if len(sha) != 2*sha256.Size || strings.Trim(sha, "0123456789abcdef") != "" {
		return fmt.Errorf("%w: it is not a SHA-256 in hex", adapters.ErrInvalidName)
	}
	return nil
}

func (s *Store) blobsKey(tenant string) string { return s.meta("blobs:" + tenant) }

// blobRef is a tenant's blob in the count of references.
func blobRef(tenant, sha string) string { return tenant + "/" + sha }

// blobAt reads the record of a blob that must go on existing.
func (s *Store) blobAt(tenant, sha string) at { return at{s.blobsKey(tenant), sha, true} }

func loadBlob(snap snapshot, i int, sha string) (blobRecord, error) {
	b, err := load[blobRecord](snap, i, "a blob")
	return b, notFoundAs(err, "blob "+sha)
}

// PutBlob is Store.PutBlob.
func (s *Store) PutBlob(ctx context.Context, tenant string, r io.Reader) (adapters.BlobInfo, error) {
	const doing = "storing a blob"
	var info adapters.BlobInfo
	if err := checkNames(tenant); err != nil {
		return info, fmt.Errorf("%s: %w", doing, err)
	}
	u := upload{s: s, id: strings.ToLower(rand.Text())}
	err := u.stamp(ctx, doing, true)
	if err != nil {
		return info, err
	}
	if info, err = u.send(ctx, doing, r); err == nil {
		err = s.recordBlob(ctx, doing, owner(tenant), info, &u)
	}
	if err != nil || !u.taken {
		_ = s.abandon(context.WithoutCancel(ctx), u.id, info.SHA256) // what cannot be removed now, GC removes
	}
	return info, err
}

// upload is a blob's way to Redis.
type upload struct {
	s       *Store
	id      string
	stamped time.Time // on this machine's clock
	taken   bool      // by a commit
}

// stamp enters the upload among the orphans, or shows that it goes on.
func (u *upload) stamp(ctx context.Context, doing string, first bool) error {
	u.stamped = time.Now()
	orphan := at{key: u.s.meta("orphans"), field: u.id}
	_, err := u.s.update(ctx, doing, []at{orphan}, func(snap snapshot, c *change) error {
		if stamp, ok := snap.raw(0); (!ok || stamp == "0") && !first {
			return errAbandoned
		}
		c.set(orphan.key, orphan.field, strconv.FormatInt(snap.now.UnixMicro(), 10))
		return nil
	})
	return err
}

var errAbandoned = fmt.Errorf("%w: it took so long that its chunks were collected as garbage", adapters.ErrStoreUnavailable)

func (u *upload) send(ctx context.Context, doing string, r io.Reader) (info adapters.BlobInfo, err error) {
	sum := sha256.New()
	chunk := make([]byte, u.s.o.ChunkBytes)
	for i := 0; ; i++ {
		if err := ctx.Err(); err != nil {
			return info, fmt.Errorf("%s: reading its content: %w", doing, err)
		}
		n, readErr := fill(r, chunk)
		end := readErr == io.EOF
		if readErr != nil && !end {
			return info, fmt.Errorf("%s: reading its content: %w", doing, readErr)
		}
		if n > 0 {
			sum.Write(chunk[:n])
			info.Bytes += int64(n)
			if err := u.s.view(ctx, doing, func(ctx context.Context) error {
				return u.s.client.HSet(ctx, u.s.blobKey(u.id), strconv.Itoa(i), chunk[:n]).Err()
			}); err != nil {
				return info, err
			}
		}
		if end {
			info.SHA256 = hex.EncodeToString(sum.Sum(nil))
			return info, nil
		}
		if time.Since(u.stamped) > u.s.o.UploadGrace/4 {
			if err := u.stamp(ctx, doing, false); err != nil {
				return info, err
			}
		}
	}
}

// fill reads until chunk is full, r ends or breaks. Unlike io.ReadFull it tells a source's own io.ErrUnexpectedEOF from its end.
func fill(r io.Reader, chunk []byte) (n int, err error) {
	for n < len(chunk) && err == nil {
		var k int
		k, err = r.Read(chunk[n:])
		n += k
	}
	return n, err
}

// recordBlob makes a blob the tenant's, and what was uploaded its content, unless it has that content already, whole.
func (s *Store) recordBlob(ctx context.Context, doing, tenant string, info adapters.BlobInfo, u *upload) error {
	whole, err := s.wholeContent(ctx, doing, info.SHA256)
	if err != nil {
		return err
	}
	reads := []at{{key: s.meta("contents"), field: info.SHA256}, {key: s.blobsKey(tenant), field: info.SHA256}, {key: s.meta("orphans"), field: u.id}}
	_, err = s.update(ctx, doing, reads, func(snap snapshot, c *change) error {
		if stamp, ok := snap.raw(2); !ok || stamp == "0" {
			return errAbandoned
		}
		have, known := snap.raw(0)
		if u.taken = !known || have != whole; u.taken {
			if old, err := decodeContent(have); known && err == nil {
				c.set(s.meta("orphans"), old.ID, "0")
			}
			c.unset(s.meta("orphans"), u.id)
			if err := save(c, s.meta("contents"), info.SHA256, contentRecord{u.id, info.Bytes, int64(s.o.ChunkBytes)}); err != nil {
				return err
			}
		}
		if _, ok := snap.raw(1); !ok {
			c.count(s.meta("holders"), info.SHA256, 1)
		}
		c.member(s.meta("tenants"), tenant)
		return save(c, s.blobsKey(tenant), info.SHA256, blobRecord{info.Bytes, snap.now})
	})
	return err
}

// wholeContent returns the record of a content that is there and undamaged, or "".
func (s *Store) wholeContent(ctx context.Context, doing, sha string) (raw string, err error) {
	err = s.view(ctx, doing, func(ctx context.Context) error {
		raw, err = s.client.HGet(ctx, s.meta("contents"), sha).Result()
		return err
	})
	if errors.Is(err, adapters.ErrNotFound) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	c, err := decodeContent(raw)
	if err == nil {
		err = s.fetchContent(ctx, doing, sha, c, io.Discard)
	}
	if errors.Is(err, adapters.ErrCorrupt) {
		return "", nil
	}
	return raw, err
}

// abandon removes the chunks of an upload, unless a commit made them the content of sha after all. Once it is marked it cannot be committed.
func (s *Store) abandon(ctx context.Context, id, sha string) error {
	const doing = "giving up an upload"
	reads := []at{{key: s.meta("orphans"), field: id}, {key: s.meta("contents"), field: sha}}
	committed := false
	_, err := s.update(ctx, doing, reads, func(snap snapshot, c *change) error {
		content, err := load[contentRecord](snap, 1, "a blob")
		if committed = err == nil && content.ID == id; !committed {
			c.frees = true
			c.set(s.meta("orphans"), id, "0")
		}
		return nil
	})
	if err != nil || committed {
		return err
	}
	return s.discard(ctx, doing, id)
}

// discard removes chunks that no content names, and then their entry among the orphans.
func (s *Store) discard(ctx context.Context, doing, id string) error {
	return s.view(ctx, doing, func(ctx context.Context) error {
		if err := s.client.Unlink(ctx, s.blobKey(id)).Err(); err != nil {
			return err
		}
		return s.client.HDel(ctx, s.meta("orphans"), id).Err()
	})
}

var errMoved = errors.New("the chunks are gone")

// fetchContent writes all chunks to w and verifies sizes and hash. ErrCorrupt names the blob; errMoved comes with it where a chunk is gone.
func (s *Store) fetchContent(ctx context.Context, doing, sha string, c contentRecord, w io.Writer) error {
	sum := sha256.New()
	for i := range c.chunks() {
		var raw []byte
		err := s.view(ctx, doing, func(ctx context.Context) (err error) {
			raw, err = s.client.HGet(ctx, s.blobKey(c.ID), strconv.FormatInt(i, 10)).Bytes()
			return err
		})
		if errors.Is(err, adapters.ErrNotFound) {
			return fmt.Errorf("%s: %w: chunk %d of blob %s is missing: %w", doing, adapters.ErrCorrupt, i, sha, errMoved)
		}
		if err != nil {
			return err
		}
		if want := min(c.Chunk, c.Bytes-i*c.Chunk); int64(len(raw)) != want {
			return fmt.Errorf("%s: %w: chunk %d of blob %s has %d bytes, not %d", doing, adapters.ErrCorrupt, i, sha, len(raw), want)
		}
		sum.Write(raw)
		if _, err := w.Write(raw); err != nil {
			return fmt.Errorf("%s: %w: writing the temporary file: %w", doing, adapters.ErrStoreUnavailable, err)
		}
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != sha {
		return fmt.Errorf("%s: %w: blob %s has SHA-256 %s", doing, adapters.ErrCorrupt, sha, got)
	}
	return nil
}

// OpenBlob is Store.OpenBlob. The whole content is fetched and verified here.
func (s *Store) OpenBlob(ctx context.Context, tenant, sha string) (adapters.BlobReader, error) {
	if err := checkSHA(sha); err != nil {
		return nil, fmt.Errorf("opening a blob: %w", err)
	}
	doing := "opening blob " + sha
	if err := checkNames(tenant); err != nil {
		return nil, fmt.Errorf("%s: %w", doing, err)
	}
	before := ""
	for {
		raw, err := s.findContent(ctx, doing, owner(tenant), sha)
		if err != nil {
			return nil, err
		}
		c, err := decodeContent(raw)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", doing, err)
		}
		b, err := s.download(ctx, doing, sha, c)
		if errors.Is(err, errMoved) && raw != before { // collected or replaced since, or indeed gone
			before = raw
			continue
		}
		return b, err
	}
}

// findContent returns the record of a blob's content, provided that the blob is the tenant's.
func (s *Store) findContent(ctx context.Context, doing, tenant, sha string) (string, error) {
	if err := s.usable(ctx); err != nil {
		return "", fmt.Errorf("%s: %w", doing, s.classify(ctx, err))
	}
	bounded, cancel := context.WithTimeout(ctx, s.o.Timeout)
	defer cancel()
	snap, err := s.read(bounded, []at{{key: s.blobsKey(tenant), field: sha}, {key: s.meta("contents"), field: sha}})
	if err == nil {
		_, err = load[blobRecord](snap, 0, "a blob")
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w", doing, s.classify(ctx, err))
	}
	raw, ok := snap.raw(1)
	if !ok {
		return "", fmt.Errorf("%s: %w: its content is gone", doing, adapters.ErrCorrupt)
	}
	return raw, nil
}

func (s *Store) download(ctx context.Context, doing, sha string, c contentRecord) (adapters.BlobReader, error) {
	if c.Bytes <= s.o.SpoolBytes {
		var b bytes.Buffer
		if err := s.fetchContent(ctx, doing, sha, c, &b); err != nil {
			return nil, err
		}
		return memoryBlob{bytes.NewReader(b.Bytes())}, nil
	}
	f, err := os.CreateTemp(s.o.TempDir, "bhive-blob-")
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", doing, adapters.ErrStoreUnavailable, err)
	}
	err = os.Remove(f.Name()) // the open file stays
	if err == nil {
		err = s.fetchContent(ctx, doing, sha, c, f)
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("%s: %w", doing, s.classify(ctx, err))
	}
	return fileBlob{f, c.Bytes}, nil
}

type memoryBlob struct{ *bytes.Reader }

func (memoryBlob) Close() error { return nil }

type fileBlob struct {
	*os.File
	size int64
}

func (b fileBlob) Size() int64 { return b.size }
