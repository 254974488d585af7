package redis

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"bhive/adapters"
	"bhive/adapters/storetest"
)

// patience is a timeout of stores whose calls must succeed, however slow the machine is.
const patience = time.Minute

var durable = []string{"--appendonly", "yes", "--appendfsync", "always"}

func put(t testing.TB, s adapters.Store, content string) string {
	t.Helper()
	b, err := s.PutBlob(ctx, "", strings.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	return b.SHA256
}

func publish(t testing.TB, s adapters.Store, name, content string) adapters.Version {
	t.Helper()
	v, err := s.Publish(ctx, "", adapters.Version{Name: name, SHA256: put(t, s, content)}, adapters.PublishOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func read(s adapters.Store, sha string) (string, error) {
	b, err := s.OpenBlob(ctx, "", sha)
	if err != nil {
		return "", err
	}
	defer b.Close()
	raw, err := io.ReadAll(io.NewSectionReader(b, 0, b.Size()))
	return string(raw), err
}

// contents is all that a store shows.
type contents struct {
	Adapters []adapters.Adapter
	Versions []adapters.Version
	Jobs     []adapters.Job
	Events   []adapters.Event
	Files    []adapters.File
	Value    string
	Cursor   string
	Blob     string
}

func look(t *testing.T, s adapters.Store, sha string) (c contents) {
	t.Helper()
	var value []byte
	var errs [8]error
	c.Adapters, errs[0] = s.List(ctx, adapters.AllTenants)
	c.Versions, errs[1] = s.Versions(ctx, "", "a")
	c.Jobs, errs[2] = s.ListJobs(ctx, adapters.AllTenants)
	c.Events, errs[3] = s.Events(ctx, "", "j", 0, 0)
	c.Files, errs[4] = s.ListFiles(ctx, adapters.AllTenants)
	value, _, errs[5] = s.GetValue(ctx, "", "k")
	c.Cursor, errs[6] = s.Cursor(ctx)
	c.Blob, errs[7] = read(s, sha)
	c.Value = string(value)
	if err := errors.Join(errs[:]...); err != nil {
		t.Fatal(err)
	}
	return c
}

// heals waits until a store whose Redis is back finds that out.
func heals(t *testing.T, s adapters.Store) {
	t.Helper()
	start := time.Now()
	for err := s.Ping(ctx); err != nil; err = s.Ping(ctx) {
		if time.Since(start) > 20*time.Second {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Logf("the store was back after %v", time.Since(start).Round(time.Millisecond))
}

// While Redis is killed or paused every call fails soon with ErrStoreUnavailable and without any effect, then or later. When it is back
// everything goes on, and what was acknowledged is there.
func TestAway(t *testing.T) {
	for name, outage := range map[string]struct{ begin, end func(*server) }{
		"killed": {(*server).kill, (*server).start},
		"paused": {func(s *server) { s.signal(syscall.SIGSTOP) }, func(s *server) { s.signal(syscall.SIGCONT); s.await() }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // it mostly waits
			srv := startServer(t, durable...)
			s := openTest(t, srv.url(), Options{Timeout: 300 * time.Millisecond})
			calm := openTest(t, srv.url(), Options{Timeout: patience}) // for the calls that must not fail
			publish(t, calm, "a", "one")
			v := publish(t, calm, "a", "two")
			j, err := calm.CreateJob(ctx, "", adapters.Job{ID: "j", State: "running"}, json.RawMessage(`1`))
			if err != nil {
				t.Fatal(err)
			}
			f, err := calm.PutFile(ctx, "", adapters.File{ID: "f", SHA256: v.SHA256})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := calm.PutValue(ctx, "", "k", []byte("value"), 0); err != nil {
				t.Fatal(err)
			}
			before := look(t, calm, v.SHA256)
			waiting := make(chan error, 1)
			go func() { _, err := s.Watch(ctx, before.Cursor); waiting <- err }()
			time.Sleep(50 * time.Millisecond) // it waits in Redis

			outage.begin(srv)
			ignore := func(_ any, err error) error { return err }
			calls := map[string]func() error{
				"PutBlob":      func() error { return ignore(s.PutBlob(ctx, "", strings.NewReader("three"))) },
				"OpenBlob":     func() error { return ignore(s.OpenBlob(ctx, "", v.SHA256)) },
				"Publish":      func() error { return ignore(s.Publish(ctx, "", v, adapters.PublishOptions{Job: &j})) },
				"Get":          func() error { return ignore(s.Get(ctx, "", "a", 0)) },
				"List":         func() error { return ignore(s.List(ctx, "")) },
				"Versions":     func() error { return ignore(s.Versions(ctx, "", "a")) },
				"SetLive":      func() error { return ignore(s.SetLive(ctx, "", "a", 1)) },
				"Delete":       func() error { return s.Delete(ctx, "", "a", 0) },
				"Cursor":       func() error { return ignore(s.Cursor(ctx)) },
				"Watch":        func() error { return ignore(s.Watch(ctx, before.Cursor)) },
				"CreateJob":    func() error { return ignore(s.CreateJob(ctx, "", adapters.Job{ID: "k"})) },
				"GetJob":       func() error { return ignore(s.GetJob(ctx, "", "j")) },
				"ListJobs":     func() error { return ignore(s.ListJobs(ctx, "")) },
				"UpdateJob":    func() error { return ignore(s.UpdateJob(ctx, "", j)) },
				"DeleteJob":    func() error { return s.DeleteJob(ctx, "", "j") },
				"AppendEvents": func() error { return ignore(s.AppendEvents(ctx, "", "j", json.RawMessage(`2`))) },
				"Events":       func() error { return ignore(s.Events(ctx, "", "j", 0, 0)) },
				"LastEvent":    func() error { return ignore(s.LastEvent(ctx, "", "j")) },
				"PutFile":      func() error { return ignore(s.PutFile(ctx, "", adapters.File{ID: "g", SHA256: f.SHA256})) },
				"GetFile":      func() error { return ignore(s.GetFile(ctx, "", "f")) },
				"ListFiles":    func() error { return ignore(s.ListFiles(ctx, "")) },
				"DeleteFile":   func() error { return s.DeleteFile(ctx, "", "f") },
				"PutValue":     func() error { return ignore(s.PutValue(ctx, "", "k", nil, adapters.AnyRev)) },
				"GetValue":     func() error { _, _, err := s.GetValue(ctx, "", "k"); return err },
				"DeleteValue":  func() error { return s.DeleteValue(ctx, "", "k") },
				"PutBasis": func() error {
					return ignore(s.PutBasis(ctx, adapters.BasisRecord{BaseHash: "b", SHA256: v.SHA256}, ""))
				},
				"GetBasis": func() error { return ignore(s.GetBasis(ctx, "b")) },
				"GC":       func() error { return ignore(s.GC(ctx, 0)) },
				"Ping":     func() error { return s.Ping(ctx) },
			}
			var wg sync.WaitGroup
			for name, call := range calls {
				wg.Go(func() {
					start := time.Now()
					if err := call(); !errors.Is(err, adapters.ErrStoreUnavailable) {
						t.Errorf("%s: %v", name, err)
					}
					if d := time.Since(start); d > 3*time.Second {
						t.Logf("%s took %v", name, d)
					}
				})
			}
			wg.Wait()
			if err := <-waiting; !errors.Is(err, adapters.ErrStoreUnavailable) {
				t.Errorf("a Watch that waited: %v", err)
			}
			short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
			defer cancel()
			if err := ignore(s.Get(short, "", "a", 0)); !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, adapters.ErrStoreUnavailable) {
				t.Errorf("Get with a deadline: %v", err)
			}

			outage.end(srv)
			heals(t, s)
			time.Sleep(50 * time.Millisecond) // whatever was sent before comes to be handled
			if d := cmp.Diff(before, look(t, calm, v.SHA256)); d != "" {
				t.Error(d)
			}
			if got := publish(t, calm, "a", "three"); got.Number != 3 {
				t.Errorf("the next version: %d", got.Number)
			}
			if c, err := calm.Watch(ctx, before.Cursor); err != nil || len(c) != 1 || c[0].Number != 3 {
				t.Errorf("what came since: %+v, %v", c, err)
			}
		})
	}
}

// What Script was told to be done is there after Redis was killed at any moment, and each call was made as a whole or not at all.
func TestKilledAnyTime(t *testing.T) {
	rounds := 12
	if testing.Short() {
		rounds = 4
	}
	srv := startServer(t, durable...)
	for round := range rounds {
		url := fmt.Sprintf("%s?prefix=round%d", srv.url(), round)
		s := openTest(t, url, Options{ChunkBytes: 4096, Timeout: time.Second})
		killed, after := make(chan struct{}), rand.N(16) // of Script's 16 steps
		kill := sync.OnceFunc(func() {
			go func() {
				defer close(killed)
				time.Sleep(rand.N(3 * time.Millisecond)) // perhaps in the middle of the next step
				srv.kill()
			}()
		})
		if after == 0 {
			kill()
		}
		step := 0
		err := storetest.Script(s, func(n int) {
			if step = n; n == after {
				kill()
			}
		})
		kill() // where the machine was too slow for the step
		<-killed
		t.Logf("killed after step %d", step)
		if err != nil && !errors.Is(err, adapters.ErrStoreUnavailable) {
			t.Errorf("after step %d: %v", step, err)
		}
		srv.start()
		heals(t, s)
		storetest.CheckScript(t, openTest(t, url, Options{ChunkBytes: 4096, Timeout: patience}), step)
		if c := srv.client(t); t.Failed() {
			t.Fatal(c.HGetAll(ctx, s.meta("orphans")).Result())
		}
		_ = s.Close()
	}
}

// proxy stands between a store and its server.
type proxy struct {
	listener net.Listener
	mu       sync.Mutex
	cut      string // the next command that contains it is passed on, and its answer is not
	cuts     int
	conns    sync.WaitGroup
}

func startProxy(t *testing.T, to string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{listener: l}
	p.conns.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to)
			if err != nil {
				in.Close()
				continue
			}
			p.conns.Go(func() { p.pass(in, out) })
		}
	})
	t.Cleanup(func() { l.Close(); p.conns.Wait() })
	return p
}

// pass handles one command at a time, as the client sends them.
func (p *proxy) pass(in, out net.Conn) {
	defer in.Close()
	defer out.Close()
	buffer := make([]byte, 1<<20)
	for {
		n, err := in.Read(buffer)
		if err != nil {
			return
		}
		p.mu.Lock()
		cut := p.cut != "" && bytes.Contains(buffer[:n], []byte(p.cut))
		if cut {
			p.cut, p.cuts = "", p.cuts+1
		}
		p.mu.Unlock()
		if _, err := out.Write(buffer[:n]); err != nil {
			return
		}
		if n, err = out.Read(buffer); err != nil || cut {
			return
		}
		if _, err := in.Write(buffer[:n]); err != nil {
			return
		}
	}
}

// A change whose answer is lost is made once.
func TestAnswerLost(t *testing.T) {
	srv := startServer(t)
	p := startProxy(t, srv.addr())
	s := openTest(t, "redis://"+p.listener.Addr().String(), Options{})
	t.Cleanup(func() { _ = s.Close() })
	publish(t, s, "a", "one") // the scripts are known to Redis now
	if _, err := s.CreateJob(ctx, "", adapters.Job{ID: "j"}); err != nil {
		t.Fatal(err)
	}
	cut := func(what string) {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.cut = what
	}
	sha := put(t, s, "two")
	cut("announce")
	if v, err := s.Publish(ctx, "", adapters.Version{Name: "a", SHA256: sha}, adapters.PublishOptions{}); err != nil || v.Number != 2 {
		t.Errorf("%+v, %v", v, err)
	}
	cut("rpush")
	if n, err := s.AppendEvents(ctx, "", "j", json.RawMessage(`"x"`), json.RawMessage(`"y"`)); err != nil || n != 2 {
		t.Errorf("%d, %v", n, err)
	}
	if e, err := s.Events(ctx, "", "j", 0, 0); err != nil || len(e) != 2 {
		t.Errorf("%+v, %v", e, err)
	}
	if p.cuts != 2 {
		t.Errorf("%d answers were lost", p.cuts)
	}
}

// A publication for a job that is made again, because its caller never learnt of the first, is the first.
func TestPublishAgain(t *testing.T) {
	s := openTest(t, startServer(t).url(), Options{})
	j, err := s.CreateJob(ctx, "", adapters.Job{ID: "j", State: "running"})
	if err != nil {
		t.Fatal(err)
	}
	j.State = "succeeded"
	v := adapters.Version{Name: "a", SHA256: put(t, s, "x")}
	o := adapters.PublishOptions{CheckLive: true, Job: &j, Events: []json.RawMessage{json.RawMessage(`1`)}}
	first, err := s.Publish(ctx, "", v, o)
	if err != nil {
		t.Fatal(err)
	}
	again, err := s.Publish(ctx, "", v, o)
	if err != nil || !cmp.Equal(first, again) {
		t.Errorf("%v: %s", err, cmp.Diff(first, again))
	}
	if e, err := s.Events(ctx, "", "j", 0, 0); err != nil || len(e) != 1 {
		t.Errorf("%+v, %v", e, err)
	}
	v.SHA256 = put(t, s, "y")
	if _, err := s.Publish(ctx, "", v, o); !errors.Is(err, adapters.ErrConflict) {
		t.Errorf("another version for the same revision: %v", err)
	}
}

// Without memory Redis refuses a change as a whole; deletions and collections go on.
func TestOutOfMemory(t *testing.T) {
	srv := startServer(t)
	s, raw := openTest(t, srv.url(), Options{}), srv.client(t)
	publish(t, s, "a", "one")
	sha := put(t, s, "two")
	if err := raw.ConfigSet(ctx, "maxmemory", "1").Err(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.PutBlob(ctx, "", strings.NewReader("three")); !errors.Is(err, adapters.ErrStoreUnavailable) {
		t.Errorf("PutBlob: %v", err)
	}
	if _, err := s.Publish(ctx, "", adapters.Version{Name: "a", SHA256: sha}, adapters.PublishOptions{}); !errors.Is(err, adapters.ErrStoreUnavailable) {
		t.Errorf("Publish: %v", err)
	}
	if v, err := s.Get(ctx, "", "a", 0); err != nil || v.Number != 1 {
		t.Errorf("%+v, %v", v, err)
	}
	if err := s.Delete(ctx, "", "a", 0); err != nil {
		t.Error(err)
	}
	if r, err := s.GC(ctx, 0); err != nil || r.Blobs != 2 {
		t.Errorf("%+v, %v", r, err)
	}
	if err := raw.ConfigSet(ctx, "maxmemory", "0").Err(); err != nil {
		t.Fatal(err)
	}
	if v := publish(t, s, "a", "four"); v.Number != 2 {
		t.Errorf("%+v", v)
	}
}
