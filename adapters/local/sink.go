package local

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"sync"
	"sync/atomic"

	"bhive/adapters"
)

const (
	sinkPiece  = 256 << 10 // bytes that are read, hashed and written at once
	sinkPieces = 32        // between reading and the slower of hashing and writing
	sinkAhead  = 8         // pieces after which the system is asked to begin with what was written
)

// sink hashes, writes and syncs a blob while it is being read. Hashing and writing are goroutines of their own and wait for reading alone: the file is
// synced while its end is still being hashed, or the other way round.
type sink struct {
	f    *os.File
	s    *Store
	info adapters.BlobInfo
	seen int64 // bytes that the system was asked to write
}

// sinkBuffer is a piece that is being hashed and written.
type sinkBuffer struct {
	data []byte
	n    int
	busy atomic.Int32 // those who still read it
}

// copyFrom takes all of r and syncs the file.
func (k *sink) copyFrom(r io.Reader) error {
	var (
		free             = make(chan *sinkBuffer, sinkPieces)
		hashing, writing = make(chan *sinkBuffer, sinkPieces), make(chan *sinkBuffer, sinkPieces)
		broken           = make(chan struct{}) // writing has failed
		whole            bool                  // set before the two are closed
		written          error
		both             sync.WaitGroup
	)
	done := func(b *sinkBuffer) {
		if b.busy.Add(-1) == 0 {
			free <- b
		}
	}
	both.Go(func() {
		sum := sha256.New()
		for b := range hashing {
			sum.Write(b.data[:b.n])
			done(b)
		}
		k.info.SHA256 = hex.EncodeToString(sum.Sum(nil))
	})
	both.Go(func() {
		for b := range writing {
			if written == nil {
				if written = k.write(b.data[:b.n]); written != nil {
					close(broken)
				}
			}
			done(b)
		}
		if whole && written == nil {
			written = k.f.Sync()
		}
	})
	err := k.read(r, free, broken, func(b *sinkBuffer) {
		b.busy.Store(2)
		hashing <- b
		writing <- b
	})
	whole = err == nil
	close(hashing)
	close(writing)
	both.Wait()
	return errors.Join(err, written)
}

// read gives all of r to take, piece by piece, unless writing breaks.
func (k *sink) read(r io.Reader, free <-chan *sinkBuffer, broken <-chan struct{}, take func(*sinkBuffer)) error {
	made := 0
	for {
		var b *sinkBuffer
		select {
		case b = <-free:
		default:
			if made < sinkPieces {
				made++
				b = &sinkBuffer{data: make([]byte, sinkPiece)}
			} else {
				b = <-free
			}
		}
		select {
		case <-broken:
			return nil // writing tells why
		default:
		}
		n, err := io.ReadFull(r, b.data)
		if b.n = n; n > 0 {
			take(b)
		}
		switch {
		case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
			return nil
		case err != nil:
			return err
		}
	}
}

func (k *sink) write(b []byte) error {
	half := len(b) / 2
	if _, err := k.f.Write(b[:half]); err != nil {
		return err
	}
	if err := k.s.hook("blob half written"); err != nil {
		return err
	}
	if _, err := k.f.Write(b[half:]); err != nil {
		return err
	}
	k.info.Bytes += int64(len(b))
	if n := k.info.Bytes - k.seen; n >= sinkAhead*sinkPiece {
		beginWriting(k.f, k.seen, n)
		k.seen += n
	}
	return nil
}
