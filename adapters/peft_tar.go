package adapters

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"path"
	"path/filepath"
	"strings"
)

// maxTarEntries is how many entries of an uploaded tar are looked at.
const maxTarEntries = 1000

// ErrTooLarge: an upload, or a file in it, is larger than the limit.
var ErrTooLarge = errors.New("too large")

// ReadPEFTTar reads a PEFT adapter out of a tar: the two files, in one directory at most. Other regular files are skipped. The model file is
// spooled to a nameless temporary file, so memory holds no more of it than ReadPEFT's result. Nothing is unpacked by a name of the tar's.
//
// Errors: ErrCorrupt for a tar that is cut off or not one, holds a link, a device or a sparse file, an absolute path or one with "..", one of
// the files twice, or lacks one; ErrTooLarge for a file above limit bytes; ReadPEFT's. Errors of r come through.
func ReadPEFTTar(r io.Reader, limit int64, g Geometry) (*PEFT, error) {
	u, err := SpoolPEFTTar(r, limit)
	if err != nil {
		return nil, err
	}
	defer u.Close()
	return u.Read(g)
}

// SpoolPEFTTar is the first half of ReadPEFTTar: it takes the two files out of the tar, as slowly as they come, and reads none. Close the result.
func SpoolPEFTTar(r io.Reader, limit int64) (*PEFTUpload, error) {
	return spool(func(files spooledFiles) error { return files.unpack(r, limit) })
}

// unpack takes the two files out of a tar.
func (t spooledFiles) unpack(r io.Reader, limit int64) error {
	start := make([]byte, 2)
	n, err := io.ReadFull(r, start)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return err
	}
	if string(start) == "\x1f\x8b" {
		return fmt.Errorf("%w: the tar is compressed with gzip; send it plain", ErrCorrupt)
	}
	watched := &watchedReader{r: io.MultiReader(bytes.NewReader(start[:n]), r)}
	in := tar.NewReader(watched)
	for entries := 0; ; entries++ {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return watched.cause(fmt.Errorf("%w: entry %d of the tar: %w", ErrCorrupt, entries+1, err))
		}
		if entries == maxTarEntries {
			return fmt.Errorf("%w: the tar has more than %d entries", ErrCorrupt, maxTarEntries)
		}
		if err := checkTarEntry(h, limit); err != nil {
			return err
		}
		base := path.Base(path.Clean(h.Name))
		if h.Typeflag == tar.TypeDir || !wantedFile(base) {
			continue
		}
		if err := t.take(base, h.Name, in, limit); err != nil {
			if errors.Is(err, ErrCorrupt) || errors.Is(err, ErrTooLarge) || errors.Is(err, ErrStoreUnavailable) {
				return err
			}
			return watched.cause(fmt.Errorf("%w: %s in the tar: %w", ErrCorrupt, quote(h.Name), err))
		}
	}
	if err := t.complete("the tar"); err != nil {
		return err
	}
	if a, b := t[PEFTConfigFile].name, t[PEFTModelFile].name; path.Dir(path.Clean(a)) != path.Dir(path.Clean(b)) {
		return fmt.Errorf("%w: %s and %s lie in different directories of the tar", ErrCorrupt, quote(a), quote(b))
	}
	return nil
}

// checkTarEntry refuses entries that no adapter needs, wherever they point.
func checkTarEntry(h *tar.Header, limit int64) error {
	bad := func(why string) error {
		return fmt.Errorf("%w: entry %s of the tar %s", ErrCorrupt, quote(h.Name), why)
	}
	switch {
	case h.Typeflag == tar.TypeLink || h.Typeflag == tar.TypeSymlink:
		return bad("is a link")
	case h.Typeflag == tar.TypeGNUSparse:
		return bad("is a sparse file")
	case h.Typeflag != tar.TypeReg && h.Typeflag != tar.TypeDir:
		return bad("is neither a file nor a directory")
	case path.IsAbs(h.Name) || strings.Contains(h.Name, `\`):
		return bad("has an absolute path, or a backslash in it")
	case !filepath.IsLocal(path.Clean(h.Name)) || strings.Contains("/"+h.Name+"/", "/../"):
		return bad(`leads out of the tar, or has ".." in it`)
	}
	for k := range h.PAXRecords {
		if strings.HasPrefix(k, "GNU.sparse.") {
			return bad("is a sparse file")
		}
	}
	if h.Size > limit {
		return fmt.Errorf("%w: entry %s of the tar has %d bytes, at most %d are allowed", ErrTooLarge, quote(h.Name), h.Size, limit)
	}
	if path.Base(path.Clean(h.Name)) == PEFTConfigFile && h.Size > maxPEFTConfig {
		return fmt.Errorf("%w: entry %s of the tar has %d bytes, at most %d are allowed", ErrTooLarge, quote(h.Name), h.Size, maxPEFTConfig)
	}
	return nil
}

// watchedReader remembers why reading failed, as archive/tar does not always pass it on.
type watchedReader struct {
	r   io.Reader
	err error
}

func (w *watchedReader) Read(p []byte) (int, error) {
	n, err := w.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		w.err = err
	}
	return n, err
}

// cause is the reader's own error, where there was one, and otherwise err.
func (w *watchedReader) cause(err error) error {
	if w.err != nil {
		return w.err
	}
	return err
}
