package server

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/go-chi/chi/v5"
	"github.com/pb33f/libopenapi"
	validator "github.com/pb33f/libopenapi-validator"
	"github.com/pb33f/libopenapi-validator/config"
	"github.com/pb33f/libopenapi-validator/content"
	failures "github.com/pb33f/libopenapi-validator/errors"
	"github.com/pb33f/libopenapi-validator/schema_validation"
	v3 "github.com/pb33f/libopenapi/datamodel/high/v3"
)

// contract is openapi.yaml, ready to hold traffic against.
type contract struct {
	model     *v3.Document
	validator validator.Validator
	schemas   schema_validation.SchemaValidator
}

var theContract = sync.OnceValues(func() (*contract, error) {
	raw, err := os.ReadFile("../openapi.yaml")
	if err != nil {
		return nil, err
	}
	doc, err := libopenapi.NewDocument(raw)
	if err != nil {
		return nil, err
	}
	model, err := doc.BuildV3Model()
	if err != nil {
		return nil, err
	}
	lines := func(*content.DecodeInput) (any, error) { return "", nil } // a text to the contract; what is in it is finetune's
	v, errs := validator.NewValidator(doc, config.WithBodyDecoder("application/x-ndjson", content.DecoderFunc(lines)))
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return &contract{model: &model.Model, validator: v, schemas: schema_validation.NewSchemaValidator()}, nil
})

func openContract(t testing.TB) *contract {
	t.Helper()
	c, err := theContract()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// streamed is the schema of a stream's items by the end of its path.
var streamed = map[string]string{
	"/chat/completions": "ChatCompletionChunk",
	"/v1/completions":   "CompletionChunk",
	"/events":           "JobEvent",
}

// transport holds what passes through it against the contract: every response, and every request that was answered with success.
type transport struct {
	t  testing.TB
	c  *contract
	mu *sync.Mutex // the validator's caches are filled lazily
}

var contractMu sync.Mutex

func validating(t testing.TB) http.RoundTripper {
	return &transport{t, openContract(t), &contractMu}
}

// RoundTrip is http.RoundTripper's.
func (v *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	var sent []byte
	if r.Body != nil {
		var err error
		if sent, err = io.ReadAll(r.Body); err != nil {
			return nil, err
		}
		r.Body = io.NopCloser(bytes.NewReader(sent))
	}
	a, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	if a.StatusCode < 300 {
		q := r.Clone(r.Context())
		q.Body = io.NopCloser(bytes.NewReader(sent))
		v.mu.Lock()
		_, errs := v.c.validator.ValidateHttpRequestSync(q)
		v.mu.Unlock()
		v.report(r, a, sent, "request", errs)
	}
	if strings.HasPrefix(a.Header.Get("Content-Type"), "text/event-stream") {
		a.Body = &recorded{ReadCloser: a.Body, end: func(body []byte) { v.stream(r, a, body) }}
		return a, nil
	}
	got, err := io.ReadAll(a.Body)
	_ = a.Body.Close()
	a.Body = io.NopCloser(bytes.NewReader(got))
	if err != nil {
		return a, nil // the caller's read meets the end
	}
	if a.StatusCode == http.StatusNotFound && bytes.Contains(got, []byte("unknown_url")) || a.StatusCode == http.StatusMethodNotAllowed {
		return a, nil // not of the contract
	}
	copied := *a
	copied.Body = io.NopCloser(bytes.NewReader(got))
	v.mu.Lock()
	_, errs := v.c.validator.ValidateHttpResponse(r, &copied)
	v.mu.Unlock()
	v.report(r, a, got, "response", errs)
	return a, nil
}

// stream validates the items of an event stream that has ended or was left.
func (v *transport) stream(r *http.Request, a *http.Response, body []byte) {
	if i := bytes.LastIndex(body, []byte("\n\n")); i >= 0 {
		body = body[:i+2] // the rest was never read
	} else {
		return
	}
	name := ""
	for suffix, schema := range streamed {
		if strings.HasSuffix(r.URL.Path, suffix) && (name == "" || suffix == "/chat/completions") {
			name = schema
		}
	}
	if name == "" {
		v.t.Errorf("%s %s: an event stream that the contract does not know", r.Method, r.URL.Path)
		return
	}
	for _, e := range splitEvents(body) {
		if e.Data == "[DONE]" {
			continue
		}
		schema := name
		if strings.HasPrefix(e.Data, `{"error"`) {
			schema = "ErrorResponse"
		}
		v.mu.Lock()
		_, errs := v.c.schemas.ValidateSchemaBytesWithVersion(v.c.model.Components.Schemas.GetOrZero(schema).Schema(), []byte(e.Data), 3.1)
		v.mu.Unlock()
		v.report(r, a, []byte(e.Data), "event", errs)
	}
}

func (v *transport) report(r *http.Request, a *http.Response, body []byte, what string, errs []*failures.ValidationError) {
	for _, e := range errs {
		v.t.Errorf("%s %s (%d): the %s breaks the contract: %s: %s", r.Method, r.URL.Path, a.StatusCode, what, e.Message, e.Reason)
		for _, s := range e.SchemaValidationErrors {
			v.t.Errorf("  at %s: %s", s.FieldPath, s.Reason)
		}
		v.t.Logf("  %s: %.400s", what, body)
	}
}

// recorded remembers what was read and tells end of it once, at the end or when it is closed.
type recorded struct {
	io.ReadCloser
	got  bytes.Buffer
	end  func([]byte)
	once sync.Once
}

func (b *recorded) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.got.Write(p[:n])
	if err == io.EOF {
		b.once.Do(func() { b.end(b.got.Bytes()) })
	}
	return n, err
}

func (b *recorded) Close() error {
	b.once.Do(func() { b.end(b.got.Bytes()) })
	return b.ReadCloser.Close()
}

func TestContractIsValid(t *testing.T) {
	_, errs := openContract(t).validator.ValidateDocument()
	for _, e := range errs {
		t.Errorf("%s: %s", e.Message, e.Reason)
	}
}

func TestRoutesAreTheContracts(t *testing.T) {
	c := openContract(t)
	var want, got []string
	for path, item := range c.model.Paths.PathItems.FromOldest() {
		for method := range item.GetOperations().FromOldest() {
			want = append(want, strings.ToUpper(method)+" "+path)
		}
	}
	s := serve(t).server
	err := chi.Walk(s.Handler().(chi.Routes), func(method, route string, _ http.Handler, _ ...func(http.Handler) http.Handler) error {
		got = append(got, method+" "+strings.TrimSuffix(route, "/"))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(want)
	slices.Sort(got)
	for _, r := range want {
		if !slices.Contains(got, r) {
			t.Errorf("%s is in openapi.yaml alone", r)
		}
	}
	for _, r := range got {
		if !slices.Contains(want, r) {
			t.Errorf("%s is in the router alone", r)
		}
	}
}

// The transport must notice what breaks the contract.
func TestContractCanFail(t *testing.T) {
	c := openContract(t)
	q, err := http.NewRequestWithContext(t.Context(), "GET", "http://localhost/v1/models", nil)
	if err != nil {
		t.Fatal(err)
	}
	answer := func(body string) *http.Response {
		return &http.Response{StatusCode: 200, Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(strings.NewReader(body)), Request: q}
	}
	if ok, errs := c.validator.ValidateHttpResponse(q, answer(`{"object":"list","data":[]}`)); !ok {
		t.Errorf("a good response is refused: %v", errs)
	}
	for _, bad := range []string{`{"object":"list"}`, `{"object":"list","data":[{"id":"a"}]}`, `{"object":"list","data":7}`, `[]`} {
		if ok, _ := c.validator.ValidateHttpResponse(q, answer(bad)); ok {
			t.Errorf("a bad response passes: %s", bad)
		}
	}
}
