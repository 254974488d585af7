package storetest

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"bhive/adapters"
)

func putBlob(t testing.TB, s adapters.Store, tenant, content string) string {
	t.Helper()
	b, err := s.PutBlob(ctx, tenant, strings.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	if sum := sha256.Sum256([]byte(content)); b.SHA256 != hex.EncodeToString(sum[:]) || b.Bytes != int64(len(content)) {
		t.Fatalf("blob %q is %+v", content, b)
	}
	return b.SHA256
}

func readBlob(s adapters.Store, tenant, sha string) (string, error) {
	b, err := s.OpenBlob(ctx, tenant, sha)
	if err != nil {
		return "", err
	}
	defer b.Close()
	raw, err := io.ReadAll(io.NewSectionReader(b, 0, b.Size()))
	return string(raw), err
}

type failing struct {
	n   int
	err error
}

// once gives as much as it is asked for together with its error, and when it is asked again it ends, as a request's body does.
type once struct{ err error }

func (o *once) Read(p []byte) (int, error) {
	err := o.err
	if o.err = io.EOF; err == io.EOF {
		return 0, err
	}
	return len(p), err
}

var errSource = errors.New("the source broke")

func (f *failing) Read(p []byte) (int, error) {
	if f.n--; f.n < 0 {
		return 0, f.err
	}
	return len(p), nil
}

func testBlobs(t *testing.T, s adapters.Store) {
	big := strings.Repeat("0123456789", 50000)
	for _, c := range []string{"", "x", big, "x"} {
		sha := putBlob(t, s, "", c)
		got, err := readBlob(s, "", sha)
		if err != nil || got != c {
			t.Errorf("%d bytes came back as %d, %v", len(c), len(got), err)
		}
	}
	for _, broken := range []error{errSource, io.ErrUnexpectedEOF, fmt.Errorf("the connection: %w", io.EOF)} { // the last two are a body's that is cut off
		_, err := s.PutBlob(ctx, "", &failing{3, broken})
		want(t, err, broken, "a source that breaks")
		if errors.Is(err, adapters.ErrStoreUnavailable) {
			t.Error("the source's error is taken for the store's")
		}
	}
	_, err := s.PutBlob(ctx, "", &once{err: errSource})
	want(t, err, errSource, "a source that breaks once and then ends")
	_, err = readBlob(s, "", strings.Repeat("0", 64))
	want(t, err, adapters.ErrNotFound, "an unknown blob")
	for _, sha := range []string{"", "..", "../../../etc/passwd", strings.Repeat("A", 64)} {
		_, err = readBlob(s, "", sha)
		want(t, err, adapters.ErrInvalidName, "blob "+sha)
	}
}

func testGC(t *testing.T, s adapters.Store) {
	v := publish(t, s, "", "a", "version")
	job := must(s.CreateJob(ctx, "", adapters.Job{ID: "j", Blobs: []string{putBlob(t, s, "", "job")}}))
	file := must(s.PutFile(ctx, "", adapters.File{ID: "f", SHA256: putBlob(t, s, "", "file")}))
	basis := must(s.PutBasis(ctx, adapters.BasisRecord{BaseHash: "b", Fingerprint: "f", SHA256: putBlob(t, s, "", "basis")}, ""))
	loose := putBlob(t, s, "", "loose")
	putBlob(t, s, "other", "version") // nobody of that tenant refers to it, but the file is shared
	if r := must(s.GC(ctx, time.Hour)); r.Blobs != 0 {
		t.Errorf("within the grace: %+v", r)
	}
	open, err := s.OpenBlob(ctx, "", loose)
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	if r := must(s.GC(ctx, 0)); r.Blobs != 1 || r.Bytes != 5 {
		t.Errorf("%+v", r)
	}
	if raw, err := io.ReadAll(io.NewSectionReader(open, 0, open.Size())); err != nil || string(raw) != "loose" {
		t.Errorf("an open blob after its collection: %q, %v", raw, err)
	}
	_, err = readBlob(s, "", loose)
	want(t, err, adapters.ErrNotFound, "a collected blob")
	_, err = readBlob(s, "other", v.SHA256)
	want(t, err, adapters.ErrNotFound, "another tenant's loose blob")
	_, err = s.Publish(ctx, "", adapters.Version{Name: "x", SHA256: loose}, adapters.PublishOptions{})
	want(t, err, adapters.ErrNotFound, "publishing a collected blob")
	for _, sha := range []string{v.SHA256, job.Blobs[0], file.SHA256, basis.SHA256} {
		if _, err := readBlob(s, "", sha); err != nil {
			t.Error(err)
		}
	}
	want(t, s.Delete(ctx, "", "a", 0), nil, "delete")
	want(t, s.DeleteJob(ctx, "", "j"), nil, "delete")
	want(t, s.DeleteFile(ctx, "", "f"), nil, "delete")
	if r := must(s.GC(ctx, 0)); r.Blobs != 3 {
		t.Errorf("after deletions: %+v", r)
	}
}
