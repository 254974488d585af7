package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"bhive/adapters"

	"github.com/google/go-cmp/cmp"
)

// redisServer is a Redis of a test's own, which keeps what it acknowledged.
type redisServer struct {
	t    *testing.T
	dir  string
	addr string
	cmd  *exec.Cmd
}

func startRedis(t *testing.T) *redisServer {
	t.Helper()
	if _, err := exec.LookPath("redis-server"); err != nil {
		t.Skip("redis-server is not installed; make redis-server installs Debian's package")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	r := &redisServer{t: t, dir: t.TempDir(), addr: l.Addr().String()}
	r.start()
	t.Cleanup(r.kill)
	return r
}

func (r *redisServer) start() {
	r.t.Helper()
	_, port, _ := net.SplitHostPort(r.addr)
	r.cmd = exec.Command("redis-server", "--port", port, "--bind", "127.0.0.1", "--dir", r.dir, "--save", "", "--appendonly", "yes", "--appendfsync", "always")
	if err := r.cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	for range 1000 {
		if conn, err := net.Dial("tcp", r.addr); err == nil {
			conn.Close()
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	r.t.Fatal("redis-server does not answer")
}

func (r *redisServer) kill() { _ = r.cmd.Process.Kill(); _ = r.cmd.Wait() }

func (r *redisServer) url() string { return "redis://" + r.addr }

func records(t *testing.T, s adapters.Store) (list []adapters.Record) {
	t.Helper()
	if err := s.Export(context.Background(), func(r adapters.Record) error {
		if r.Job == nil || r.Job.Job.State == "succeeded" {
			list = append(list, r)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(list, func(a, b adapters.Record) int { return strings.Compare(a.String(), b.String()) })
	return list
}

// A registry goes to Redis and back to another directory, and is the same there; a second copy changes nothing.
func TestCopyRegistry(t *testing.T) {
	ctx, log := context.Background(), slog.New(slog.DiscardHandler)
	dir, back, url := t.TempDir(), t.TempDir(), startRedis(t).url()
	open := func(name string) adapters.Store {
		t.Helper()
		s, err := openStore(ctx, name, log)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := open(dir)
	blob := func(tenant, content string) string {
		b, err := s.PutBlob(ctx, tenant, strings.NewReader(content))
		if err != nil {
			t.Fatal(err)
		}
		return b.SHA256
	}
	var errs []error
	note := func(_ any, err error) { errs = append(errs, err) }
	for i := range 3 {
		note(s.Publish(ctx, "t", adapters.Version{Name: "a", Rank: 8, SHA256: blob("t", fmt.Sprint("content ", i))}, adapters.PublishOptions{}))
	}
	note(s.SetLive(ctx, "t", "a", 2))
	note(nil, s.Delete(ctx, "t", "a", 1))
	note(s.CreateJob(ctx, "t", adapters.Job{ID: "done", State: "succeeded", Blobs: []string{blob("t", "examples")}}, json.RawMessage(`"x"`)))
	note(s.CreateJob(ctx, "t", adapters.Job{ID: "waits", State: "queued"}))
	note(s.PutFile(ctx, "", adapters.File{ID: "f", SHA256: blob("", "file")}))
	note(s.PutValue(ctx, "", "k", []byte("v"), 0))
	note(s.PutBasis(ctx, adapters.BasisRecord{BaseHash: "base", SHA256: blob("", "basis")}, ""))
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	want := records(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	copying := func(from, to string) copyReport {
		t.Helper()
		src, dst := open(from), open(to)
		defer src.Close()
		defer dst.Close()
		report, err := copyRegistry(ctx, src, dst)
		if err != nil {
			t.Fatal(err)
		}
		return report
	}
	if r := copying(dir, url); r.copied != 5 || r.kept != 0 || r.unfinished != 1 || r.bytes != int64(9+9+8+4+5) {
		t.Errorf("there: %+v", r)
	}
	if r := copying(dir, url); r.copied != 0 || r.kept != 5 || r.bytes != 0 {
		t.Errorf("there again: %+v", r)
	}
	if r := copying(url, back); r.copied != 5 {
		t.Errorf("and back: %+v", r)
	}
	s = open(back)
	defer s.Close()
	if d := cmp.Diff(want, records(t, s)); d != "" {
		t.Error(d)
	}
	if v, err := s.Get(ctx, "t", "a", 0); err != nil || v.Number != 2 {
		t.Errorf("%+v, %v", v, err)
	}
	r := registryCopyCmd{From: back, To: url}
	if err := r.Run(ctx, log); err == nil { // the directory is open
		t.Error("a directory in use was read")
	}
}

// Two servers share a registry: what one has trained the other serves. While Redis is away both go on with what they have and refuse writes
// with 503 and Retry-After; when it is back all goes on by itself, and what one missed reaches it.
func TestSharedRegistry(t *testing.T) {
	redis := startRedis(t)
	one := serve(t, t.TempDir(), "--registry", redis.url())
	two := serve(t, t.TempDir(), "--registry", redis.url())
	says := func(p *process, model string) string {
		t.Helper()
		return p.must("chat", "-m", model, "-t", "0", "What is a wolf?")
	}
	one.must("tune", "examples/pirate.jsonl", "--name", "pirate", "--max-steps", "3")
	// Soon, that is when the change has come through the feed, both say the same.
	agree := func(when, model string) string {
		t.Helper()
		want := says(one, model)
		for start := time.Now(); ; time.Sleep(20 * time.Millisecond) {
			if got := says(two, model); got == want {
				return want
			} else if time.Since(start) > 20*time.Second {
				t.Fatalf("%s: one server says %q, the other %q", when, want, got)
			}
		}
	}
	first := agree("trained", "pirate")
	one.must("tune", "examples/pirate.jsonl", "--name", "pirate", "--continue", "--max-steps", "3")
	if out := two.must("adapters", "ls"); !strings.Contains(out, "@2") {
		t.Errorf("the other server lists:\n%s", out)
	}
	said := agree("trained on", "pirate")
	if said == first {
		t.Errorf("training on changed nothing: %q", said)
	}

	rollback := func(p *process) (int, string) {
		t.Helper()
		r, err := http.Post(p.url+"/adapters/pirate/rollback", "application/json", strings.NewReader(`{"version": 1}`))
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		return r.StatusCode, r.Header.Get("Retry-After")
	}
	// Within some seconds the server says so itself.
	ready := func(p *process, want int) {
		t.Helper()
		for start := time.Now(); ; time.Sleep(50 * time.Millisecond) {
			status, said := ask(t, "GET", p.url+"/ready", "")
			if status == want && (want == http.StatusOK || strings.Contains(said, "store_unavailable")) {
				return
			} else if time.Since(start) > 30*time.Second {
				t.Fatalf("/ready: %d %s, want %d", status, said, want)
			}
		}
	}
	for name, outage := range map[string]struct{ begin, end func() }{
		"killed": {redis.kill, redis.start},
		"paused": {func() { redis.cmd.Process.Signal(syscall.SIGSTOP) }, func() { redis.cmd.Process.Signal(syscall.SIGCONT) }},
	} {
		outage.begin()
		for _, p := range []*process{one, two} {
			if status, after := rollback(p); status != http.StatusServiceUnavailable || after == "" {
				t.Errorf("%s: a write gave %d, Retry-After %q", name, status, after)
			}
			if p == two {
				if got := says(p, "pirate"); got != said {
					t.Errorf("%s: the loaded adapter says %q, before %q", name, got, said)
				}
			}
			says(p, "demo")
			ready(p, http.StatusServiceUnavailable)
		}
		outage.end()
		ready(one, http.StatusOK)
		ready(two, http.StatusOK)
		for start := time.Now(); ; time.Sleep(50 * time.Millisecond) {
			if status, _ := rollback(one); status == http.StatusOK {
				break
			} else if time.Since(start) > 30*time.Second {
				t.Fatalf("%s: it does not heal: a write gives %d", name, status)
			}
		}
		one.must("adapters", "rollback", "pirate", "2")
		if got := agree("after it was "+name, "pirate"); got != said {
			t.Errorf("%s, then back: %q, before %q", name, got, said)
		}
		other := "after-" + name
		two.must("tune", "examples/pirate.jsonl", "--name", other, "--max-steps", "1")
		agree("trained after it was "+name, other)
	}
	one.stop()
	two.stop()
}

// TestSharedKeys: keys in Redis are those of every server, whoever makes or revokes them: either server, or the command without one.
func TestSharedKeys(t *testing.T) {
	url := startRedis(t).url()
	offline := &process{t: t}
	made := func(p *process, flags ...string) string {
		t.Helper()
		return strings.TrimSpace(p.must(append([]string{"keys", "create"}, flags...)...))
	}
	if out, err := offline.run("keys", "create", "--registry", url, "--tenant", "anna"); err == nil {
		t.Errorf("a first key that is a tenant's: %s", out)
	}
	admin := made(offline, "--registry", url, "--tenant", "default", "--role", "admin")
	one, two := serve(t, t.TempDir(), "--registry", url), serve(t, t.TempDir(), "--registry", url)
	// Within keys.Fresh both servers know of a change.
	soon := func(key string, good bool) {
		t.Helper()
		for _, p := range []*process{one, two} {
			for start := time.Now(); ; time.Sleep(50 * time.Millisecond) {
				out, err := p.run("adapters", "ls", "--api-key", key)
				if (err == nil) == good {
					break
				} else if time.Since(start) > 20*time.Second {
					t.Fatalf("the key is good: %v, want %v: %s", err == nil, good, out)
				}
			}
		}
	}
	id := func(name string) string {
		t.Helper()
		list := offline.must("keys", "ls", "--registry", url)
		for line := range strings.Lines(list) {
			if f := strings.Fields(line); f[len(f)-1] == name {
				return f[0]
			}
		}
		t.Fatalf("no key of %s:\n%s", name, list)
		return ""
	}
	for _, p := range []*process{one, two} {
		if out, err := p.run("adapters", "ls"); err == nil || !strings.Contains(out, "API key") {
			t.Errorf("without a key: %v, %s", err, out)
		}
	}
	online := made(one, "--api-key", admin, "--tenant", "anna", "--name", "online")
	behind := made(offline, "--registry", url, "--tenant", "ben", "--name", "behind")
	soon(online, true)
	soon(behind, true)

	// Each way, what is anna's is not ben's.
	one.must("adapters", "import", "adapters/testdata/adapter_plain", "--name", "hers", "--api-key", online)
	if out := two.must("adapters", "ls", "--api-key", online); !strings.Contains(out, "hers") {
		t.Errorf("on the other server anna has:\n%s", out)
	}
	if out := two.must("adapters", "ls", "--api-key", behind); strings.Contains(out, "hers") {
		t.Errorf("ben has:\n%s", out)
	}

	offline.must("keys", "revoke", id("online"), "--registry", url)
	soon(online, false)
	two.must("keys", "revoke", id("behind"), "--api-key", admin)
	soon(behind, false)
	soon(admin, true)
	if out, err := offline.run("keys", "revoke", "key-none", "--registry", url); err == nil || !strings.Contains(out, "key") {
		t.Errorf("revoking no key: %v, %s", err, out)
	}
	one.stop()
	two.stop()
}

// TestCopyNothing: a directory that is not there is no registry to read, nor to look for keys in, and is not made one.
func TestCopyNothing(t *testing.T) {
	from, to := filepath.Join(t.TempDir(), "absent"), filepath.Join(t.TempDir(), "to")
	if out, err := (&process{t: t}).run("registry", "copy", from, to); err == nil || !strings.Contains(out, from) {
		t.Errorf("%v: %s", err, out)
	}
	for _, args := range [][]string{{"keys", "ls", "--data", from}, {"keys", "revoke", "key-1", "--data", from}} {
		if out, err := (&process{t: t}).run(args...); err == nil || !strings.Contains(out, from) {
			t.Errorf("%q: %v: %s", args, err, out)
		}
	}
	for _, dir := range []string{from, to} {
		if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", dir, err)
		}
	}
}
