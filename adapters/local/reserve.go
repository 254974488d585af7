package local

import (
	"context"
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"syscall"

	"go.etcd.io/bbolt"
)

// reserveBytes is the room that a full disk still has for deletions: the database writes pages anew, also to delete, and without room nothing could ever
// be deleted.
const reserveBytes = 1 << 20

func (s *Store) reservePath() string { return filepath.Join(s.dir, "reserve") }

// keepReserve makes the reserve where it is not there. Where there is no room now, the next call does.
func (s *Store) keepReserve() {
	if st, err := os.Stat(s.reservePath()); err == nil && st.Size() == reserveBytes {
		return
	}
	content := make([]byte, reserveBytes)
	_, _ = rand.Read(content) // some file systems keep no zeros
	if err := os.WriteFile(s.reservePath(), content, 0o600); err != nil {
		_ = os.Remove(s.reservePath())
	}
}

// free runs what leads to less on the disk, and again without the reserve where the disk is full.
func (s *Store) free(f func() error) error {
	err := f()
	if !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, syscall.EDQUOT) || os.Remove(s.reservePath()) != nil {
		return err
	}
	return f()
}

// deletion is update of a transaction that deletes. fn may run twice.
func (s *Store) deletion(ctx context.Context, doing string, fn func(*bbolt.Tx) error) error {
	return s.free(func() error { return s.update(ctx, doing, fn) })
}
