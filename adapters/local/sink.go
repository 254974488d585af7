package local

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"os"

	"bhive/adapters"
)

const (
	sinkPiece = 256 << 10 // bytes that are hashed and written at once
	sinkAhead = 32        // pieces after which the system is asked to begin with what was written
)

// sink hashes and writes a blob: each piece on two goroutines, while the next is being read.
type sink struct {
	f    *os.File
	s    *Store
	sum  hash.Hash
	info adapters.BlobInfo
	seen int64 // bytes that the system was asked to write
}

// copyFrom takes all of r.
func (k *sink) copyFrom(r io.Reader) error {
	k.sum = sha256.New()
	var buffers [2][]byte
	busy := func() error { return nil }
	for i := 0; ; i++ {
		b := buffers[i%2]
		if b == nil {
			b = make([]byte, sinkPiece)
			buffers[i%2] = b
		}
		n, err := io.ReadFull(r, b)
		if e := busy(); e != nil {
			return e
		}
		busy = k.begin(b[:n])
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			err = busy()
			k.info.SHA256 = hex.EncodeToString(k.sum.Sum(nil))
			return err
		}
		if err != nil {
			return errors.Join(err, busy())
		}
	}
}

// begin hashes and writes a piece; the function that it returns waits for both.
func (k *sink) begin(b []byte) func() error {
	if len(b) == 0 {
		return func() error { return nil }
	}
	hashed, written := make(chan struct{}), make(chan error, 1)
	go func() {
		defer close(hashed)
		k.sum.Write(b)
	}()
	go func() { written <- k.write(b) }()
	return func() error {
		<-hashed
		return <-written
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
