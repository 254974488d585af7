package server

import (
	"context"
	"errors"
	"io"
	"maps"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"bhive/adapters"
	"bhive/infer"

	"pgregory.net/rapid"
)

func TestMeter(t *testing.T) {
	now := time.Unix(0, 0)
	m := newMeter(Quotas{Requests: 2, TokensPerMinute: 60})
	m.now = func() time.Time { return now }
	enter := func(tenant string, prompt int) func(int) {
		t.Helper()
		leave, err := m.enter(tenant, prompt)
		if err != nil {
			t.Fatal(err)
		}
		return leave
	}
	refused := func(tenant, what string, retry int) {
		t.Helper()
		_, err := m.enter(tenant, 1)
		var e *apiError
		if !errors.As(err, &e) || e.Status != http.StatusTooManyRequests || !strings.Contains(e.Message, what) || e.Retry != retry {
			t.Errorf("want a refusal for %s and another try after %d s, got %+v", what, retry, err)
		}
	}
	first, second := enter("a", 10), enter("a", 10)
	refused("a", "2 requests at once", 1)
	enter("b", 1)(0) // another tenant's are its own
	first(0)
	enter("a", 0)(0)
	second(60) // 80 of 60
	refused("a", "60 tokens a minute", 21)
	now = now.Add(20 * time.Second)
	refused("a", "60 tokens a minute", 1) // as many as a minute's, not below
	now = now.Add(time.Second)
	enter("a", 5)(0)
	now = now.Add(time.Hour)
	enter("a", 0)(0)
	if len(m.tenants) != 0 {
		t.Errorf("who takes nothing is remembered: %v", m.tenants)
	}
	m = newMeter(Quotas{Requests: 1}) // without a bound on tokens, which then never drain
	enter("a", 5)(7)
	if len(m.tenants) != 0 {
		t.Errorf("who takes nothing is remembered: %v", m.tenants)
	}
}

// Whoever comes and goes, nobody runs more at once than allowed, and nothing is left counted.
func TestMeterLeaksNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		now := time.Unix(0, 0)
		m := newMeter(Quotas{Requests: 3, TokensPerMinute: 100})
		m.now = func() time.Time { return now }
		running := map[string][]func(int){}
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			who := rapid.SampledFrom([]string{"a", "b"}).Draw(t, "who")
			now = now.Add(time.Duration(rapid.IntRange(0, 30).Draw(t, "seconds")) * time.Second)
			if n := len(running[who]); n > 0 && rapid.Bool().Draw(t, "leaves") {
				running[who][n-1](rapid.IntRange(0, 50).Draw(t, "generated"))
				running[who] = running[who][:n-1]
			} else if leave, err := m.enter(who, rapid.IntRange(0, 50).Draw(t, "prompt")); err == nil {
				running[who] = append(running[who], leave)
			}
			if len(running[who]) > 3 {
				t.Fatalf("%d at once", len(running[who]))
			}
		}
		for _, list := range running {
			for _, leave := range list {
				leave(0)
			}
		}
		now = now.Add(24 * time.Hour)
		if leave, err := m.enter("a", 0); err != nil {
			t.Fatal(err)
		} else if leave(0); len(m.tenants) != 0 {
			t.Fatalf("left: %v", m.tenants)
		}
	})
}

// A request that the engine panics at is over, for its tenant's quota too, and what of it ran.
func TestQuotaAfterPanic(t *testing.T) {
	c := shared(t).serve(t, func(c *Config, _ *Deps) { c.Quotas = Quotas{Requests: 1} })
	ctx := context.WithValue(t.Context(), callerKey{}, caller{home: "panics", tenant: "panics"})
	p := infer.DefaultParams()
	p.MaxTokens = 5
	fine := infer.Request{Prompt: []int{1, 2, 3}, Params: p}
	bad := fine
	bad.Constrain = func() infer.Constraint { panic("a constraint") }
	for range 2 {
		func() {
			defer func() {
				if recover() == nil {
					t.Fatal("no panic")
				}
			}()
			_, err := c.server.submit(ctx, []infer.Request{fine, bad})
			t.Fatalf("submitted with %v", err)
		}()
	}
	if leave, err := c.server.meter.enter("panics", 1); err != nil {
		t.Error(err)
	} else {
		leave(0)
	}
	until(t, "cancelled", func() bool { return shared(t).deps.Engine.Stats().Running == 0 })
}

func TestQuotas(t *testing.T) {
	h := ownHive(t, hiveConfig{})
	h.publish(t, "first", 4, 1)
	c := h.serve(t, func(c *Config, _ *Deps) {
		c.Quotas = Quotas{Requests: 1, TokensPerMinute: 200, TrainingTokensPerDay: 1, Adapters: 2, Bytes: 1 << 30}
	})
	now := time.Now()
	c.server.meter.now = func() time.Time { return now } // however long the requests take
	ask := object{"model": "demo", "prompt": strings.Repeat(" fox", 150), "max_tokens": 1}
	c.post("/v1/completions", ask).want(200)
	c.post("/v1/completions", ask).want(200) // the minute's tokens are not used up before it begins
	a := c.post("/v1/completions", ask)
	if message := a.wantError(429, "", "rate_limit_exceeded"); !strings.Contains(message, "200 tokens a minute") {
		t.Error(message)
	}
	if n, err := strconv.Atoi(a.Header.Get("Retry-After")); err != nil || n < 1 || n > 60 {
		t.Errorf("Retry-After is %q", a.Header.Get("Retry-After"))
	}
	c.post("/v1/chat/completions", object{"model": "demo", "messages": []object{{"role": "user", "content": "a"}}}).wantError(429, "", "rate_limit_exceeded")

	sum := object{"parts": []object{{"model": "first"}}}
	c.post("/adapters/second/compose", sum).want(201)
	c.post("/adapters/third/compose", sum).wantError(429, "", "insufficient_quota")
	c.sendTar("/adapters/third/import", "").wantError(429, "", "insufficient_quota")
	c.post("/adapters", object{"name": "third", "examples": pirates()}).wantError(429, "", "insufficient_quota")
	c.get("/adapters/third").wantError(404, "name", "adapter_not_found")
	c.post("/adapters/first/examples", object{"examples": pirates(), "max_steps": 1}).want(202) // a name that there is
	until(t, "the job has ended", func() bool { return strings.Contains(string(c.get("/adapters/first").want(200).Body), `"succeeded"`) })
	if message := c.post("/adapters/first/examples", object{"examples": pirates()}).wantError(429, "", "rate_limit_exceeded"); !strings.Contains(message, "training tokens a day") {
		t.Error(message)
	}

	full := h.serve(t, func(c *Config, d *Deps) { c.Quotas = Quotas{Bytes: 1}; d.Metrics = nil })
	full.post("/adapters/first/compose", sum).wantError(429, "", "insufficient_quota")
	full.form("purpose", "fine-tune", "file=a", "x").wantError(429, "", "insufficient_quota")
	full.post("/v1/completions", ask).want(200)
}

// What comes at once shares what is left: requests that the store knows nothing of yet count too.
func TestQuotasAtOnce(t *testing.T) {
	h := ownHive(t, hiveConfig{})
	h.publish(t, "first", 4, 1)
	c := h.serve(t, func(c *Config, _ *Deps) { c.Quotas = Quotas{Adapters: 2, Bytes: 1 << 30} })
	sum := object{"parts": []object{{"model": "first"}}}
	ctx := context.WithValue(t.Context(), callerKey{}, caller{home: adapters.DefaultTenant, tenant: adapters.DefaultTenant})
	done, err := c.server.mayKeep(ctx, "second", 0)
	if err != nil {
		t.Fatal(err)
	}
	c.post("/adapters/third/compose", sum).wantError(429, "", "insufficient_quota")
	c.post("/adapters", object{"name": "third", "examples": pirates()}).wantError(429, "", "insufficient_quota")
	done()
	c.post("/adapters/third/compose", sum).want(201)

	if done, err = c.server.mayKeep(ctx, "", 1<<30); err != nil {
		t.Fatal(err)
	}
	c.form("purpose", "fine-tune", "file=a", "x").wantError(429, "", "insufficient_quota")
	done()
	c.form("purpose", "fine-tune", "file=a", "x").want(200)
	if len(c.server.claims.tenants) != 0 {
		t.Errorf("claims are left: %v", c.server.claims.tenants)
	}
}

// Of files that are sent at once, one has what room there is.
func TestFilesAtOnce(t *testing.T) {
	h := ownHive(t, hiveConfig{})
	c := h.serve(t, func(c *Config, _ *Deps) { c.Quotas = Quotas{Bytes: 1} })
	const n = 8
	ends, statuses := make([]*io.PipeWriter, n), make(chan int, n)
	for i := range n {
		body, w := io.Pipe()
		ends[i] = w
		go func() {
			r, err := http.Post(c.url+"/v1/files", "multipart/form-data; boundary=b", body)
			if err != nil {
				t.Error(err)
				statuses <- 0
				return
			}
			r.Body.Close()
			statuses <- r.StatusCode
		}()
		if _, err := io.WriteString(w, "--b\r\nContent-Disposition: form-data; name=purpose\r\n\r\nfine-tune\r\n--b\r\nContent-Disposition: form-data; name=file; filename=a\r\n\r\nx"); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(100 * time.Millisecond) // all have begun
	for _, w := range ends {
		_, _ = io.WriteString(w, "\r\n--b--\r\n")
		w.Close()
	}
	kept := 0
	for range n {
		if <-statuses == 200 {
			kept++
		}
	}
	if kept != 1 {
		t.Errorf("%d files were kept in the room of one", kept)
	}
}

// A prompt that is refused takes nothing of the minute's tokens, however long it was.
func TestRefusedTakesNothing(t *testing.T) {
	c := shared(t).serve(t, func(c *Config, _ *Deps) { c.Quotas = Quotas{TokensPerMinute: 100} })
	now := time.Now()
	c.server.meter.now = func() time.Time { return now }
	long := strings.Repeat(" fox", 5000)
	c.post("/v1/completions", object{"model": "demo", "prompt": long}).wantError(400, "prompt", "context_length_exceeded")
	c.post("/v1/completions", object{"model": "demo", "prompt": []string{"a fox", long, long}}).wantError(400, "prompt", "context_length_exceeded")
	c.post("/v1/completions", object{"model": "demo", "prompt": "a fox", "top_p": 2}).wantError(400, "top_p", "")
	c.post("/v1/completions", object{"model": "demo", "prompt": "a fox", "max_tokens": 1}).want(200)
	if n := c.server.meter.tenants["default"].tokens; n < 1 || n > 10 {
		t.Errorf("%g tokens are counted", n)
	}
}

// A job counts as the adapter that it will publish.
func TestQueuedAdaptersCount(t *testing.T) {
	h := ownHive(t, hiveConfig{})
	h.publish(t, "first", 4, 1)
	c := h.serve(t, func(c *Config, _ *Deps) { c.Quotas = Quotas{Adapters: 2} })
	forever := object{"examples": pirates(), "max_steps": 100000}
	with := func(name string) object { o := maps.Clone(forever); o["name"] = name; return o }
	c.post("/adapters", with("second")).want(202)
	c.post("/adapters", with("third")).wantError(429, "", "insufficient_quota")
	c.post("/adapters/third/compose", object{"parts": []object{{"model": "first"}}}).wantError(429, "", "insufficient_quota")
	c.post("/adapters/first/examples", object{"examples": pirates(), "max_steps": 1}).want(202)
	c.do("DELETE", "/adapters/second", nil).want(200)
	c.post("/adapters/third/compose", object{"parts": []object{{"model": "first"}}}).want(201)
}
