package main

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime/multipart"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bhive/adapters"

	"github.com/google/go-cmp/cmp"
	goredis "github.com/redis/go-redis/v9"
	"go.etcd.io/bbolt"
)

const goldenAdapters = "adapters/testdata/adapter_"

// TestDamagedRegistry: over HTTP, an adapter whose blob was cut or swapped is an error that names the blob; other adapters go on, nothing is
// registered of what needed it, and an import of it again heals it.
func TestDamagedRegistry(t *testing.T) {
	t.Run("redis", func(t *testing.T) {
		r := startRedis(t)
		raw := goredis.NewClient(&goredis.Options{Addr: r.addr})
		t.Cleanup(func() { _ = raw.Close() })
		key := func(sha string) string {
			t.Helper()
			content, err := raw.HGet(t.Context(), "{bhive}:contents", sha).Result()
			if err != nil {
				t.Fatal(err)
			}
			var c struct{ ID string }
			if err := json.Unmarshal([]byte(content), &c); err != nil || c.ID == "" {
				t.Fatalf("%s: %v", content, err)
			}
			return "bhive:blob:{" + c.ID + "}"
		}
		damagedRegistry(t, r.url(), func(cut, swapped, good string) {
			whole, err := raw.HGet(t.Context(), key(cut), "0").Result()
			if err == nil {
				err = raw.HSet(t.Context(), key(cut), "0", whole[:len(whole)/2]).Err()
			}
			if err == nil {
				err = raw.Copy(t.Context(), key(good), key(swapped), 0, true).Err()
			}
			if err != nil {
				t.Fatal(err)
			}
		})
	})
	t.Run("local", func(t *testing.T) {
		dir := t.TempDir()
		path := func(sha string) string { return filepath.Join(dir, "blobs", sha[:2], sha) }
		damagedRegistry(t, dir, func(cut, swapped, good string) {
			info, err := os.Stat(path(cut))
			if err == nil {
				err = os.Truncate(path(cut), info.Size()/2)
			}
			var other []byte
			if err == nil {
				other, err = os.ReadFile(path(good))
			}
			if err == nil {
				err = os.WriteFile(path(swapped), other, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
		})
	})
}

func damagedRegistry(t *testing.T, registry string, damage func(cut, swapped, good string)) {
	start := func() *process { return serve(t, t.TempDir(), "--registry", registry) }
	p := start()
	sha := map[string]string{}
	for _, name := range []string{"one", "two", "plain"} {
		p.must("adapters", "import", goldenAdapters+name, "--name", name)
		var v struct{ SHA256 string }
		if _, said := ask(t, "GET", p.url+"/adapters/"+name+"/versions/1", ""); json.Unmarshal([]byte(said), &v) != nil || v.SHA256 == "" {
			t.Fatal(said)
		}
		sha[name] = v.SHA256
	}
	p.stop()
	damage(sha["one"], sha["two"], sha["plain"])

	p = start() // which has loaded nothing yet
	ask := func(method, path, body string) (int, string) {
		t.Helper()
		return ask(t, method, p.url+path, body)
	}
	for _, name := range []string{"one", "two"} {
		for _, q := range []struct{ method, path, body string }{
			{"POST", "/v1/completions", `{"model": "` + name + `", "prompt": "a", "max_tokens": 1}`},
			{"POST", "/v1/completions", `{"model": "plain:0.5+` + name + `:0.5", "prompt": "a", "max_tokens": 1}`},
			{"GET", "/adapters/" + name + "/export", ""},
			{"POST", "/adapters/sum/compose", `{"parts": [{"model": "plain"}, {"model": "` + name + `"}]}`},
		} {
			status, said := ask(q.method, q.path, q.body)
			if status != 500 || !strings.Contains(said, "corrupt_adapter") || !strings.Contains(said, sha[name]) {
				t.Errorf("%s %s %s: %d %s; want the blob %s", q.method, q.path, q.body, status, said, sha[name])
			}
		}
		if status, said := ask("POST", "/v1/completions", `{"model": "plain", "prompt": "a", "max_tokens": 1}`); status != 200 {
			t.Errorf("another adapter: %d %s", status, said)
		}
	}
	if status, said := ask("GET", "/adapters/sum", ""); status != 404 {
		t.Errorf("a sum that could not be made: %d %s", status, said)
	}
	p.must("adapters", "import", goldenAdapters+"one", "--name", "one")
	if status, said := ask("POST", "/v1/completions", `{"model": "one", "prompt": "a", "max_tokens": 1}`); status != 200 {
		t.Errorf("imported again: %d %s", status, said)
	}
	p.stop()
}

// TestBadUploads: of what is refused no record stays in either store, no name, version, file, job or change, and adapters that were there go on.
func TestBadUploads(t *testing.T) {
	var whole bytes.Buffer
	if err := pack(&whole, goldenAdapters+"plain"); err != nil {
		t.Fatal(err)
	}
	good := whole.String()
	entry := func(h tar.Header, data string) string {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		h.Mode = 0o644
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(w, data) // shorter than the header says, on purpose
		return b.String()
	}
	form := func(file string) (body, kind string) {
		var b bytes.Buffer
		w := multipart.NewWriter(&b)
		part, err := w.CreateFormFile("file", "x.jsonl")
		if err == nil {
			_, err = io.WriteString(part, file)
		}
		if err != nil || w.WriteField("purpose", "fine-tune") != nil || w.Close() != nil {
			t.Fatal(err)
		}
		return b.String(), w.FormDataContentType()
	}
	file, kind := form(strings.Repeat(`{"text": "a"}`+"\n", 1000))
	const x = "application/x-tar"
	bad := []struct {
		name, path, kind, body string
		length                 int // that the request claims; 0: the body's
		says                   string
	}{
		{"a tar that is cut", "/adapters/bad/import", x, good[:len(good)/2], 0, "adapter_model.safetensors"},
		{"a body that is shorter than it claims", "/adapters/bad/import", x, good[:len(good)/2], len(good), "ended early"},
		{"an entry that is shorter than it claims", "/adapters/bad/import", x, entry(tar.Header{Name: adapters.PEFTModelFile, Size: 5000}, "short"), 0, adapters.PEFTModelFile},
		{"dots", "/adapters/bad/import", x, entry(tar.Header{Name: "../" + adapters.PEFTModelFile}, ""), 0, ".."},
		{"a link", "/adapters/bad/import", x, entry(tar.Header{Name: adapters.PEFTModelFile, Typeflag: tar.TypeSymlink, Linkname: "/etc/passwd"}, ""), 0, "is a link"},
		{"a bomb", "/adapters/bad/import", x, entry(tar.Header{Name: adapters.PEFTModelFile, Size: 1 << 40}, ""), 0, "at most"},
		{"another dtype", "/adapters/bad/import", x, strings.Replace(good, `"dtype":"BF16"`, `"dtype":"I16" `, 1), 0, "I16"},
		{"another shape", "/adapters/bad/import", x, strings.Replace(good, `"shape":[4,256]`, `"shape":[256,4]`, 1), 0, "lora_A"},
		{"another base", "/adapters/bad/import", x, strings.ReplaceAll(good, "layers.5.", "layers.9."), 0, "6 layers"},
		{"a form that is cut", "/v1/files", kind, file[:len(file)/2], 0, "form"},
		{"a form that is shorter than it claims", "/v1/files", kind, file[:len(file)/2], len(file), "ended early"},
		{"examples that are none", "/adapters?name=bad", "application/x-ndjson", `{"text": "a"}` + "\n" + `{"text":` + "\n", 0, "line 2"},
		{"examples that are cut", "/adapters?name=bad", "application/x-ndjson", strings.Repeat(`{"text": "a"}`+"\n", 3), 5000, "ended early"},
	}
	for name, registry := range map[string]string{"redis": startRedis(t).url(), "local": t.TempDir()} {
		t.Run(name, func(t *testing.T) {
			held := func() []adapters.Record {
				t.Helper()
				s, err := openStore(t.Context(), registry, slog.New(slog.DiscardHandler))
				if err != nil {
					t.Fatal(err)
				}
				defer s.Close()
				return records(t, s)
			}
			p := serve(t, t.TempDir(), "--registry", registry)
			p.must("adapters", "import", goldenAdapters+"one", "--name", "one")
			p.stop()
			before := held()
			p = serve(t, t.TempDir(), "--registry", registry)
			for _, b := range bad {
				status, said := sendShort(t, p.url, b.path, b.kind, b.body, max(b.length, len(b.body)))
				if status < 400 || status >= 500 || !strings.Contains(said, b.says) {
					t.Errorf("%s: %d %s; want an error about %q", b.name, status, said, b.says)
				}
			}
			for path, want := range map[string]string{"/adapters": `"one"`, "/v1/models": `"one"`, "/v1/files": `"data":[]`, "/v1/fine_tuning/jobs": `"data":[]`} {
				if status, said := ask(t, "GET", p.url+path, ""); status != 200 || !strings.Contains(said, want) || strings.Contains(said, "bad") {
					t.Errorf("%s: %d %s", path, status, said)
				}
			}
			if status, said := ask(t, "POST", p.url+"/v1/completions", `{"model": "one", "prompt": "a", "max_tokens": 1}`); status != 200 {
				t.Errorf("an adapter that was there: %d %s", status, said)
			}
			p.stop()
			if d := cmp.Diff(before, held()); d != "" {
				t.Errorf("the registry before and after:\n%s", d)
			}
		})
	}
}

// sendShort sends a body of which the request claims a length, and no more; then it listens.
func sendShort(t *testing.T, url, path, kind, body string, length int) (int, string) {
	t.Helper()
	host := strings.TrimPrefix(url, "http://")
	conn, err := net.Dial("tcp", host)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	head := fmt.Sprintf("POST %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n", path, host, kind, length)
	go func() {
		_, _ = io.WriteString(conn, head+body) // the server may answer and close before it has all
		if len(body) < length {
			_ = conn.(*net.TCPConn).CloseWrite()
		}
	}()
	a, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	defer a.Body.Close()
	said, err := io.ReadAll(a.Body)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return a.StatusCode, string(said)
}

// ask sends a request and gives the answer.
func ask(t *testing.T, method, address, body string) (int, string) {
	t.Helper()
	q, err := http.NewRequestWithContext(t.Context(), method, address, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	q.Header.Set("Content-Type", "application/json")
	a, err := http.DefaultClient.Do(q)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Body.Close()
	said, err := io.ReadAll(a.Body)
	if err != nil {
		t.Fatal(err)
	}
	return a.StatusCode, string(said)
}

// TestUnreadableJobs: a server that cannot go on with its registry's jobs ends and says so: it does not stay without an engine.
func TestUnreadableJobs(t *testing.T) {
	data := t.TempDir()
	p := serve(t, data)
	p.stop()
	db, err := bbolt.Open(filepath.Join(data, "store.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte("jobs")).Put([]byte("default\x00ftjob-1"), []byte("{"))
	})
	if err = errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	bin, err := built()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, bin, "serve", "--addr", "127.0.0.1:0", "--data", data).CombinedOutput()
	if err == nil || ctx.Err() != nil || !strings.Contains(string(out), "looking for unfinished jobs") {
		t.Errorf("it ended with %v (%v):\n%s", err, ctx.Err(), out)
	}
}
