package adapters

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"time"
)

// PEFTUpload is a PEFT adapter's two files, as they came, spooled.
type PEFTUpload struct{ files spooledFiles }

// SpoolPEFTFiles spools the files of a directory that come one by one: next gives the name and the content of each, and io.EOF after the last. Files
// of other names are skipped. Close the result.
//
// Errors: ErrCorrupt where one of the two files is missing or comes twice; ErrTooLarge for one above limit bytes. Errors of next and its readers come through.
func SpoolPEFTFiles(next func() (name string, r io.Reader, err error), limit int64) (*PEFTUpload, error) {
	return spool(func(files spooledFiles) error {
		for {
			name, r, err := next()
			if errors.Is(err, io.EOF) {
				return files.complete("the upload")
			}
			if err != nil {
				return err
			}
			if base := path.Base(name); wantedFile(base) {
				if err := files.take(base, name, r, limit); err != nil {
					return err
				}
			}
		}
	})
}

// spool is what fill spooled; of what it could not end nothing is left.
func spool(fill func(spooledFiles) error) (*PEFTUpload, error) {
	u := &PEFTUpload{spooledFiles{}}
	if err := fill(u.files); err != nil {
		u.Close()
		return nil, fmt.Errorf("reading a PEFT adapter: %w", err)
	}
	return u, nil
}

// Read is ReadPEFT of the spooled files.
func (u *PEFTUpload) Read(g Geometry) (*PEFT, error) { return ReadPEFT(u.files, g) }

// Close frees the spooled files. It is idempotent.
func (u *PEFTUpload) Close() {
	for _, f := range u.files {
		if f.temp != nil {
			_ = f.temp.Close() // nothing of it is kept
		}
	}
	clear(u.files)
}

// spooledFiles are the files that were taken: adapter_config.json in memory, the model in a temporary file.
type spooledFiles map[string]*spooledFile

type spooledFile struct {
	io.ReaderAt
	name string // as it came
	size int64
	temp *os.File // nil: in memory
}

func wantedFile(base string) bool { return base == PEFTConfigFile || base == PEFTModelFile }

// take spools one of the two files, which came under a name. Errors that are neither ErrCorrupt, ErrTooLarge nor ErrStoreUnavailable are r's.
func (t spooledFiles) take(base, name string, r io.Reader, limit int64) (err error) {
	if have := t[base]; have != nil {
		return fmt.Errorf("%w: %s comes twice, as %s and %s", ErrCorrupt, base, quote(have.name), quote(name))
	}
	f := &spooledFile{name: name}
	t[base] = f
	if base == PEFTConfigFile {
		limit = min(limit, maxPEFTConfig)
	}
	r = io.LimitReader(r, limit+1)
	if base == PEFTConfigFile {
		var data []byte
		data, err = io.ReadAll(r)
		f.ReaderAt, f.size = bytes.NewReader(data), int64(len(data))
	} else {
		if f.temp, err = os.CreateTemp("", "bhive-upload-*"); err == nil {
			f.ReaderAt = f.temp
			if err = os.Remove(f.temp.Name()); err == nil { // the open file stays; a process that is killed leaves nothing
				f.size, err = io.Copy(f.temp, r)
			}
		}
		if here := (*fs.PathError)(nil); errors.As(err, &here) {
			return fmt.Errorf("%w: spooling %s: %w", ErrStoreUnavailable, base, err)
		}
	}
	if err == nil && f.size > limit {
		return fmt.Errorf("%w: %s has more than %d bytes", ErrTooLarge, quote(name), limit)
	}
	return err
}

// complete says which of the two files has not come.
func (t spooledFiles) complete(from string) error {
	for _, name := range []string{PEFTConfigFile, PEFTModelFile} {
		if t[name] == nil {
			return fmt.Errorf("%w: %s has no %s", ErrCorrupt, from, name)
		}
	}
	return nil
}

// Open is fs.FS's.
func (t spooledFiles) Open(name string) (fs.File, error) {
	f, ok := t[name]
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return &openSpooled{spooledFile: f, SectionReader: io.NewSectionReader(f.ReaderAt, 0, f.size)}, nil
}

type openSpooled struct {
	*spooledFile
	*io.SectionReader
}

func (f *openSpooled) ReadAt(p []byte, at int64) (int, error) { return f.SectionReader.ReadAt(p, at) }
func (f *openSpooled) Stat() (fs.FileInfo, error)             { return f, nil }
func (f *openSpooled) Close() error                           { return nil }
func (f *openSpooled) Name() string                           { return path.Base(f.name) }
func (f *openSpooled) Size() int64                            { return f.size }
func (f *openSpooled) Mode() fs.FileMode                      { return 0o444 }
func (f *openSpooled) ModTime() time.Time                     { return time.Time{} }
func (f *openSpooled) IsDir() bool                            { return false }
func (f *openSpooled) Sys() any                               { return nil }
