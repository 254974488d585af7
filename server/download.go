package server

import (
	"net/http"
	"time"
)

// download writes a large body. A client that leaves a piece of it unread for writeTimeout counts as gone: what is sent would be held for it.
type download struct {
	w       http.ResponseWriter
	control *http.ResponseController
}

// piece is how much of a body must be read within writeTimeout.
const piece = 64 << 10

func newDownload(w http.ResponseWriter) *download {
	return &download{w: w, control: http.NewResponseController(w)}
}

// Write is io.Writer's.
func (d *download) Write(p []byte) (n int, err error) {
	for err == nil && n < len(p) {
		_ = d.control.SetWriteDeadline(time.Now().Add(writeTimeout)) // a writer without deadlines (in tests) has no slow clients either
		var wrote int
		wrote, err = d.w.Write(p[n:min(len(p), n+piece)])
		n += wrote
	}
	return n, err
}

// close leaves the connection fit for another request.
func (d *download) close() { _ = d.control.SetWriteDeadline(time.Time{}) }
