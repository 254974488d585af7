package server

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"
)

// bodyTimeout is how long a client may take to send a body.
const bodyTimeout = 5 * time.Minute

// limitBody is the body, cut off with an error at limit bytes or when it takes too long; done ends the time limit.
func limitBody(w http.ResponseWriter, r *http.Request, limit int64) (body io.Reader, done func()) {
	control := http.NewResponseController(w)
	// A writer without deadlines (in tests) has no slow clients either.
	_ = control.SetReadDeadline(time.Now().Add(bodyTimeout))
	return bodyReader{http.MaxBytesReader(w, r.Body, limit)}, func() { _ = control.SetReadDeadline(time.Time{}) }
}

// bodyReader makes a body that breaks off the client's error, whoever reads it.
type bodyReader struct{ r io.Reader }

func (b bodyReader) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	var tooLarge *http.MaxBytesError
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		err = &apiError{Status: http.StatusRequestTimeout, Type: "invalid_request_error", Code: bodyTimedOut, Message: fmt.Sprintf("the body has not come within %v", bodyTimeout)}
	case err != nil && err != io.EOF && !errors.As(err, &tooLarge):
		err = &apiError{Status: http.StatusBadRequest, Type: "invalid_request_error", Code: "unreadable_body", Message: "the body ended early"}
	}
	return n, err
}

// bodyTimedOut is the code of a body that took too long.
const bodyTimedOut = "body_timeout"

// readBody reads a body of at most limit bytes.
func readBody(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, error) {
	body, done := limitBody(w, r, limit)
	defer done()
	return io.ReadAll(body)
}

// mediaType is the body's type; a missing one is JSON.
func mediaType(r *http.Request) string {
	t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil {
		return "application/json"
	}
	return t
}

// withQuery refuses a query that cannot be read as a whole: of one with a bad part, as in ?dry_run=true;rank=8, that part would be as if not given.
func (s *Server) withQuery(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := url.ParseQuery(r.URL.RawQuery); err != nil {
			s.fail(w, r, badField("", "the query cannot be read: %s", err))
			return
		}
		next.ServeHTTP(w, r)
	})
}

// decodeJSON reads a JSON object into v. Unknown fields are ignored, as OpenAI-compatible servers do.
func (s *Server) decodeJSON(w http.ResponseWriter, r *http.Request, v any) error {
	if t := mediaType(r); t != "application/json" && t != "text/json" && !strings.HasSuffix(t, "+json") &&
		t != "application/x-www-form-urlencoded" { // what curl -d says
		return &apiError{Status: http.StatusUnsupportedMediaType, Type: "invalid_request_error", Code: "unsupported_media_type",
			Message: fmt.Sprintf("the body must be application/json, not %s", t)}
	}
	b, err := readBody(w, r, s.config.MaxBodyBytes)
	if err != nil {
		return err
	}
	return unmarshal(b, v)
}

// unmarshal turns the errors of JSON into ones that name the field or the place.
func unmarshal(b []byte, v any) error {
	if len(bytes.TrimSpace(b)) == 0 {
		return &apiError{Status: http.StatusBadRequest, Type: "invalid_request_error", Code: "invalid_json", Message: "the body is empty; want a JSON object"}
	}
	err := json.Unmarshal(b, v)
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &syntax):
		line, column := place(b, syntax.Offset)
		return &apiError{Status: http.StatusBadRequest, Type: "invalid_request_error", Code: "invalid_json",
			Message: fmt.Sprintf("the body is not JSON: %s at line %d, column %d", syntax, line, column)}
	case errors.As(err, &kind):
		if kind.Field == "" {
			return badField("", "the body must be a JSON object, not %s", article(kind.Value))
		}
		if tooLarge(kind) {
			return badField(kind.Field, "%s: %s is out of range", kind.Field, article(kind.Value))
		}
		return badField(kind.Field, "%s: must be %s, not %s", kind.Field, wanted(kind.Type.Kind().String(), kind.Type.String()), article(kind.Value))
	}
	return err
}

// place finds the line and column, from 1, of a byte offset.
func place(b []byte, offset int64) (line, column int) {
	before := b[:min(int64(len(b)), max(offset-1, 0))]
	return 1 + bytes.Count(before, []byte("\n")), len(before) - bytes.LastIndexByte(before, '\n')
}

// tooLarge reports whether a number is of the right kind and does not fit its type.
func tooLarge(e *json.UnmarshalTypeError) bool {
	number, ok := strings.CutPrefix(e.Value, "number ")
	switch kind := e.Type.Kind().String(); {
	case !ok:
		return false
	case strings.HasPrefix(kind, "float"):
		return true
	case strings.HasPrefix(kind, "int"):
		return !strings.ContainsAny(number, ".eE")
	}
	return false
}

func article(value string) string {
	if strings.HasPrefix(value, "number ") {
		return "the number " + strings.TrimPrefix(value, "number ")
	}
	switch value {
	case "array", "object":
		return "an " + value
	case "bool":
		return "a boolean"
	}
	return "a " + value
}

// wanted names a Go type as a JSON user would.
func wanted(kind, name string) string {
	switch kind {
	case "bool":
		return "a boolean"
	case "string":
		return "a string"
	case "slice", "array":
		return "an array"
	case "map", "struct":
		return "an object"
	}
	if strings.HasPrefix(kind, "int") || strings.HasPrefix(kind, "uint") {
		return "an integer"
	}
	if strings.HasPrefix(kind, "float") {
		return "a number"
	}
	return name
}

// writeJSON answers with v.
func writeJSON(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("server: a response of type %T does not marshal: %v", v, err))
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(b, '\n')) // a client that went away is no error of ours
}
