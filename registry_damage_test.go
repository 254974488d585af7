package main

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"

	goredis "github.com/redis/go-redis/v9"
)

// TestDamagedRegistry: over HTTP, an adapter whose blob in Redis was cut or swapped is an error that names the blob; other adapters go on, nothing is
// registered of what needed it, and an import of it again heals it.
func TestDamagedRegistry(t *testing.T) {
	r := startRedis(t)
	raw := goredis.NewClient(&goredis.Options{Addr: r.addr})
	t.Cleanup(func() { _ = raw.Close() })
	start := func() *process { return serve(t, t.TempDir(), "--registry", r.url()) }
	p := start()
	const golden = "adapters/testdata/adapter_"
	for _, name := range []string{"one", "two", "plain"} {
		p.must("adapters", "import", golden+name, "--name", name)
	}
	p.stop()

	ctx := t.Context()
	blob := func(name string) (sha, key string) {
		t.Helper()
		record, err := raw.HGet(ctx, "{bhive}:versions:default/"+name, "1").Result()
		if err != nil {
			t.Fatal(err)
		}
		var v struct{ SHA256 string }
		if err := json.Unmarshal([]byte(record), &v); err != nil {
			t.Fatal(err)
		}
		content, err := raw.HGet(ctx, "{bhive}:contents", v.SHA256).Result()
		if err != nil {
			t.Fatal(err)
		}
		var c struct{ ID string }
		if err := json.Unmarshal([]byte(content), &c); err != nil || c.ID == "" {
			t.Fatalf("%s: %v", content, err)
		}
		return v.SHA256, "bhive:blob:{" + c.ID + "}"
	}
	cut, cutKey := blob("one")
	swapped, swappedKey := blob("two")
	_, goodKey := blob("plain")
	whole, err := raw.HGet(ctx, cutKey, "0").Result()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.HSet(ctx, cutKey, "0", whole[:len(whole)/2]).Err(); err != nil {
		t.Fatal(err)
	}
	if err := raw.Copy(ctx, goodKey, swappedKey, 0, true).Err(); err != nil {
		t.Fatal(err)
	}

	p = start() // which has loaded nothing yet
	ask := func(method, path, body string) (int, string) {
		t.Helper()
		return ask(t, method, p.url+path, body)
	}
	for name, sha := range map[string]string{"one": cut, "two": swapped} {
		for _, q := range []struct{ method, path, body string }{
			{"POST", "/v1/completions", `{"model": "` + name + `", "prompt": "a", "max_tokens": 1}`},
			{"POST", "/v1/completions", `{"model": "plain:0.5+` + name + `:0.5", "prompt": "a", "max_tokens": 1}`},
			{"GET", "/adapters/" + name + "/export", ""},
			{"POST", "/adapters/sum/compose", `{"parts": [{"model": "plain"}, {"model": "` + name + `"}]}`},
		} {
			status, said := ask(q.method, q.path, q.body)
			if status != 500 || !strings.Contains(said, "corrupt_adapter") || !strings.Contains(said, sha) {
				t.Errorf("%s %s %s: %d %s; want the blob %s", q.method, q.path, q.body, status, said, sha)
			}
		}
		if status, said := ask("POST", "/v1/completions", `{"model": "plain", "prompt": "a", "max_tokens": 1}`); status != 200 {
			t.Errorf("another adapter: %d %s", status, said)
		}
	}
	if status, said := ask("GET", "/adapters/sum", ""); status != 404 {
		t.Errorf("a sum that could not be made: %d %s", status, said)
	}
	p.must("adapters", "import", golden+"one", "--name", "one")
	if status, said := ask("POST", "/v1/completions", `{"model": "one", "prompt": "a", "max_tokens": 1}`); status != 200 {
		t.Errorf("imported again: %d %s", status, said)
	}
	p.stop()
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
