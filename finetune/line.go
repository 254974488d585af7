package finetune

import (
	"bufio"
	"bytes"
	"errors"
	"io"
)

var errLongLine = errors.New("line too long")

// lineReader yields lines of bounded length.
type lineReader struct {
	r     *bufio.Reader
	most  int
	line  int   // number of the last line returned
	bytes int64 // read so far
	buf   []byte
}

// next returns a line without its end, valid until the next call; errLongLine for one that is too long, which is skipped.
func (l *lineReader) next() ([]byte, error) {
	l.buf = l.buf[:0]
	long := false
	for first := true; ; first = false {
		part, err := l.r.ReadSlice('\n')
		l.bytes += int64(len(part))
		if err != nil && err != bufio.ErrBufferFull && !(err == io.EOF && (len(part) > 0 || !first)) {
			return nil, err
		}
		if !long && len(l.buf)+len(part) > l.most+2 {
			long = true
		}
		if !long {
			l.buf = append(l.buf, part...)
		}
		if err == bufio.ErrBufferFull {
			continue
		}
		l.line++
		if long {
			return nil, errLongLine
		}
		return bytes.TrimSuffix(bytes.TrimSuffix(l.buf, []byte("\n")), []byte("\r")), nil
	}
}
