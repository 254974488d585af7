package server

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"

	"bhive/adapters"
	"bhive/finetune"
	"bhive/infer"
)

func TestConfigValidate(t *testing.T) {
	for _, x := range []struct {
		c  Config
		ok bool
	}{
		{Config{}, true},
		{Config{Addr: "localhost:0"}, true},
		{Config{Addr: "[::1]:8080"}, true},
		{Config{Addr: "127.0.0.2:8080"}, true},
		{Config{Addr: "0.0.0.0:8080"}, true}, // with API keys
		{Config{Addr: "127.0.0.1"}, false},
		{Config{MaxBodyBytes: -1}, false},
		{Config{DrainTimeout: -1}, false},
	} {
		if err := x.c.Validate(); (err == nil) != x.ok {
			t.Errorf("%+v: %v", x.c, err)
		}
	}
}

// run starts Run on a port of its own.
func (h *hive) run(t *testing.T, drain time.Duration) (c *client, stop context.CancelFunc, ended chan error) {
	t.Helper()
	c = h.serve(t, func(c *Config, _ *Deps) { c.Addr, c.DrainTimeout, c.lastWords = "127.0.0.1:0", drain, time.Minute })
	l, err := c.server.Listen(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	ended = make(chan error, 1)
	go func() { ended <- c.server.Run(ctx, l) }()
	c.url = "http://" + l.Addr().String()
	return c, cancel, ended
}

func TestDrain(t *testing.T) {
	c, stop, ended := shared(t).run(t, time.Minute)
	want, err := c.stream(endless("demo"), nil)
	if err != nil {
		t.Fatal(err)
	}
	address := strings.TrimPrefix(c.url, "http://")
	pieces := 0
	text, err := c.stream(endless("demo"), func(string) {
		if pieces++; pieces == 2 {
			stop()
			until(t, "draining", c.server.draining.Load)
			w := httptest.NewRecorder()
			c.server.Handler().ServeHTTP(w, httptest.NewRequest("POST", "http://localhost/v1/completions", strings.NewReader(`{"model":"demo","prompt":"a"}`)))
			if w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") == "" {
				t.Errorf("draining: status %d, %s", w.Code, w.Body)
			}
			w = httptest.NewRecorder()
			c.server.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/health", nil))
			if w.Code != http.StatusServiceUnavailable {
				t.Errorf("draining: health says %d", w.Code)
			}
		}
	})
	if err != nil || text != want {
		t.Errorf("the stream that ran when draining began: %v; complete: %v", err, text == want)
	}
	if err := <-ended; err != nil {
		t.Errorf("Run: %v", err)
	}
	if _, err := net.Dial("tcp", address); err == nil {
		t.Error("it still listens")
	}
}

// What runs when the time for draining is over is told so.
func TestDrainTimeout(t *testing.T) {
	c, stop, ended := shared(t).run(t, time.Millisecond)
	q := endless("demo")
	q["n"] = 16
	pieces := 0
	_, err := c.stream(q, func(string) {
		if pieces++; pieces == 2 {
			stop()
		}
	})
	if err == nil || !strings.Contains(err.Error(), "error event: "+errDraining.Error()) {
		t.Errorf("cut off: %v", err)
	}
	if err := <-ended; err != nil {
		t.Errorf("Run: %v", err)
	}
	until(t, "freed", func() bool { return shared(t).deps.Engine.Stats().Running == 0 })
}

// Who follows a job does not keep a server from ending.
func TestDrainOfEvents(t *testing.T) {
	c, stop, ended := shared(t).run(t, time.Hour)
	c.post("/adapters", object{"name": "followed", "rank": 4, "max_steps": 100000, "batch_size": 2, "examples": pirates()}).want(202)
	c.wait("followed", "running")
	a, err := http.Get(c.url + "/adapters/followed/events")
	if err != nil {
		t.Fatal(err)
	}
	defer a.Body.Close()
	stop()
	if _, err := io.Copy(io.Discard, a.Body); err != nil {
		t.Errorf("the events end with %v", err)
	}
	if err := <-ended; err != nil {
		t.Errorf("Run: %v", err)
	}
	w := httptest.NewRecorder()
	c.server.Handler().ServeHTTP(w, httptest.NewRequest("GET", "http://localhost/adapters/followed/events", nil))
	if w.Code != http.StatusServiceUnavailable {
		t.Errorf("events of a server that drains: status %d", w.Code)
	}
	serve(t).post("/adapters/followed/cancel", nil).want(200)
}

func TestRequestID(t *testing.T) {
	c := serve(t)
	if got := c.do("GET", "/version", nil, "X-Request-Id", "my-id.7").want(200).Header.Get("X-Request-Id"); got != "my-id.7" {
		t.Errorf("the id given comes back as %q", got)
	}
	for _, bad := range []string{"", "a b", strings.Repeat("x", 200)} {
		if got := c.do("GET", "/version", nil, "X-Request-Id", bad).want(200).Header.Get("X-Request-Id"); got == bad || got == "" {
			t.Errorf("the id %q comes back as %q", bad, got)
		}
	}
}

func TestOtherOrigins(t *testing.T) {
	c := serve(t)
	c.do("POST", "/adapters", "{}", "Origin", "https://example.org", "Content-Type", "text/plain").wantError(403, "", "cross_origin")
	c.do("POST", "/v1/completions", object{"prompt": "a", "max_tokens": 1}, "Origin", c.url).want(200)
}

// Without keys, a page whose name was made to lead to this machine is not let in, though its origin is the server's to the browser.
func TestNamesOfOthers(t *testing.T) {
	c := serve(t)
	for host, status := range map[string]int{"localhost": 200, "LOCALHOST:8080": 200, "127.0.0.1:8080": 200, "[::1]:8080": 200, "[::1]": 200, "": 200, "host.docker.internal:8080": 200, "one.localhost": 200,
		"example.org": 403, "internal": 403, "example.internal.": 403, "example.org:8080": 403, "127.0.0.1.example.org": 403, "localhost.example.org:80": 403, "10.0.0.1:8080": 403} {
		r := httptest.NewRequest("GET", "/v1/models", nil)
		r.Host = host
		w := httptest.NewRecorder()
		c.server.Handler().ServeHTTP(w, r)
		if w.Code != status {
			t.Errorf("host %q: status %d, want %d: %s", host, w.Code, status, w.Body)
		}
		r.URL.Path = "/health"
		w = httptest.NewRecorder()
		c.server.Handler().ServeHTTP(w, r)
		if w.Code != 200 {
			t.Errorf("host %q: health says %d", host, w.Code)
		}
	}
}

func TestPanicIsOneRequestsError(t *testing.T) {
	var log bytes.Buffer
	c := shared(t).serve(t, func(_ *Config, d *Deps) { d.Log = slog.New(slog.NewTextHandler(&log, nil)) })
	h := withRequestID(c.server.withAccessLog(c.server.withRecover(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("of a test") }))))
	web := httptest.NewServer(h)
	defer web.Close()
	a, err := web.Client().Get(web.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Body.Close()
	if a.StatusCode != 500 || !strings.Contains(log.String(), "of a test") {
		t.Errorf("status %d, log %s", a.StatusCode, log.String())
	}
}

func TestOperations(t *testing.T) {
	c := serve(t)
	shared(t).publish(t, "measured", 8, 3)
	c.complete(object{"model": "measured", "prompt": "a", "max_tokens": 1})
	for path, says := range map[string]string{"/health": `"ok"`, "/version": `"demo"`, "/basis": `"orthonormal"`, "/openapi.yaml": "openapi: 3.1.0"} {
		if a := c.get(path).want(200); !bytes.Contains(a.Body, []byte(says)) {
			t.Errorf("%s does not say %s: %.200s", path, says, a.Body)
		}
	}
	metrics := string(c.get("/metrics").want(200).Body)
	for _, pattern := range []string{
		`(?m)^vllm:num_requests_waiting \d+$`, `(?m)^vllm:num_requests_running \d+$`, `(?m)^vllm:kv_cache_usage_perc [\d.e-]+$`,
		`(?m)^vllm:lora_requests_info\{max_lora="16",running_lora_adapters="([^"]*,)?measured(,[^"]*)?",waiting_lora_adapters="[^"]*"\} [\d.e+]+$`,
		`(?m)^bhive_tokens_total\{kind="generated"\} [1-9]`, `(?m)^bhive_steps_total [1-9]`, `(?m)^bhive_adapter_tier_bytes\{tier="device"\} [1-9]`,
		`(?m)^bhive_http_requests_total\{method="POST",route="/v1/completions",status="200"\} 1$`,
		`(?m)^bhive_training_jobs\{state="running"\} \d+$`,
	} {
		if !regexp.MustCompile(pattern).MatchString(metrics) {
			t.Errorf("nothing matches %s", pattern)
		}
	}
	own := ownHive(t, hiveConfig{}).serve(t, nil)
	own.complete(object{"model": "demo", "prompt": "a", "max_tokens": 3, "ignore_eos": true})
	metrics = string(own.get("/metrics").want(200).Body)
	for _, name := range []string{"bhive_time_to_first_token_seconds", "bhive_time_per_output_token_seconds", "bhive_request_seconds", "bhive_request_queue_seconds"} {
		if !strings.Contains(metrics, "\n"+name+"_count 1\n") {
			t.Errorf("%s has not one observation", name)
		}
	}
}

// Methods that clients make up are one in the metrics.
func TestMadeUpMethods(t *testing.T) {
	c := serve(t)
	for _, method := range []string{"FOO", "BAR", "get"} {
		c.do(method, "/", nil).want(405)
	}
	metrics := string(c.get("/metrics").want(200).Body)
	if want := `bhive_http_requests_total{method="other",route="unknown",status="405"} 3`; !strings.Contains(metrics, want) || strings.Contains(metrics, "FOO") {
		t.Errorf("not %s in\n%s", want, metrics)
	}
}

// Every sentinel error of the packages below has its answer.
func TestErrorTable(t *testing.T) {
	for err, want := range map[error]int{
		infer.ErrQueueFull: 429, finetune.ErrBusy: 429, infer.ErrPromptTooLong: 400, infer.ErrMaxTokens: 400, infer.ErrClosed: 503, finetune.ErrClosed: 503, finetune.ErrNotFound: 404,
		finetune.ErrState: 409, adapters.ErrNotFound: 404, adapters.ErrExists: 409, adapters.ErrConflict: 409, adapters.ErrInvalidName: 400,
		adapters.ErrBasisMismatch: 409, adapters.ErrBaseMismatch: 409, adapters.ErrRank: 400, adapters.ErrUnsupported: 400,
		adapters.ErrStoreUnavailable: 503, adapters.ErrClosed: 503, adapters.ErrNoMemory: 503, adapters.ErrCorrupt: 500, infer.ErrStep: 500, infer.ErrNoMemory: 503, infer.ErrAdapterLoad: 503, errDraining: 503,
	} {
		e := asAPIError(err)
		if e.Status != want || e.Message == "" || e.Type == "" {
			t.Errorf("%v: status %d, want %d", err, e.Status, want)
		}
		if (e.Status == 429 || e.Status == 503) != (e.Retry > 0) {
			t.Errorf("%v: status %d with Retry-After %d", err, e.Status, e.Retry)
		}
	}
}
