package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"
)

// eventStream writes server-sent events. The header goes out with the first one, so that an error before it can still be a plain response.
type eventStream struct {
	w       http.ResponseWriter
	control *http.ResponseController
	buf     []byte
	began   bool
	gone    bool // the client takes no more
}

func newEventStream(w http.ResponseWriter) *eventStream {
	return &eventStream{w: w, control: http.NewResponseController(w)}
}

func (e *eventStream) begin() {
	if e.began {
		return
	}
	e.began = true
	h := e.w.Header()
	h.Set("Content-Type", "text/event-stream; charset=utf-8")
	h.Set("Cache-Control", "no-cache")
	h.Set("X-Accel-Buffering", "no")
	e.w.WriteHeader(http.StatusOK)
}

// data appends one event with the given data, which has no newlines; flush sends what was appended.
func (e *eventStream) data(b []byte) {
	e.buf = append(e.buf, "data: "...)
	e.buf = append(e.buf, b...)
	e.buf = append(e.buf, "\n\n"...)
}

// event appends an event with an id and a type.
func (e *eventStream) event(id int64, kind string, b []byte) {
	e.buf = fmt.Appendf(e.buf, "id: %d\nevent: %s\n", id, kind)
	e.data(b)
}

// comment appends a line that clients ignore: it keeps the connection alive.
func (e *eventStream) comment(text string) {
	e.buf = append(append(append(e.buf, ": "...), text...), "\n\n"...)
}

// writeTimeout is how long a client may leave an event unread before it counts as gone.
const writeTimeout = time.Minute

func (e *eventStream) flush() error {
	e.begin()
	_ = e.control.SetWriteDeadline(time.Now().Add(writeTimeout)) // a writer without deadlines (in tests) has no slow clients either
	_, err := e.w.Write(e.buf)
	e.buf = e.buf[:0]
	if err == nil {
		err = e.control.Flush()
	}
	if err != nil {
		e.gone = true
		return fmt.Errorf("writing an event stream: %w", err)
	}
	return nil
}

// close leaves the connection fit for another request.
func (e *eventStream) close() { _ = e.control.SetWriteDeadline(time.Time{}) }

// failStream ends the stream with an error, as a plain response where nothing was written.
func (s *Server) failStream(e *eventStream, r *http.Request, err error) {
	if e.gone || r.Context().Err() != nil && !errors.Is(err, errDraining) {
		return // nobody listens
	}
	if !e.began {
		s.fail(e.w, r, err)
		return
	}
	api := asAPIError(err)
	if api.Status == http.StatusInternalServerError {
		s.log.ErrorContext(r.Context(), "stream failed", "request", requestID(r.Context()), "path", r.URL.Path, "error", err)
	}
	e.data(api.body())
	_ = e.flush() // the client may be gone
}

// quote is s as a JSON string.
func quote(s string) []byte {
	b, err := json.Marshal(s)
	if err != nil {
		panic(err) // strings marshal
	}
	return b
}

// mustJSON marshals a value of our own.
func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("server: a value of type %T does not marshal: %v", v, err))
	}
	return b
}
