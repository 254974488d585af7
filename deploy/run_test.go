package deploy

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience bounds every wait of these tests.
const patience = 60 * time.Second

// built is the command, built once for all tests here.
var built = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "bhive-deploy")
	if err != nil {
		return "", err
	}
	bin := filepath.Join(dir, "bhive")
	cmd := exec.Command("go", "build", "-o", bin, ".")
	cmd.Dir = ".."
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return bin, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if bin, err := built(); err == nil {
		_ = os.RemoveAll(filepath.Dir(bin))
	}
	os.Exit(code)
}

type object map[string]any

// TestCompose runs what compose.yaml runs: Redis, the first key, two servers. What one publishes the other serves; while Redis is killed or
// stands still both go on with what they have, refuse what must be written and say so; then all heals by itself.
func TestCompose(t *testing.T) {
	for _, needed := range []string{"redis-server", "redis-cli"} {
		if _, err := exec.LookPath(needed); err != nil {
			t.Skip(needed + " is not installed; make redis-server installs Debian's package")
		}
	}
	c := newCluster(t)
	servers := []string{"bhive-a", "bhive-b"}

	// Without its registry, and then without a key, a server ends; compose starts it again.
	ends := func(says string) {
		t.Helper()
		out, err := c.command("bhive-a").CombinedOutput()
		if err == nil || !strings.Contains(string(out), says) {
			t.Errorf("a server ends with %v and says %s", err, out)
		}
	}
	ends("redis")
	c.startRedis()
	c.await("redis", true)
	ends("no API keys")
	key := c.firstKey()
	for _, s := range servers {
		c.start(s)
		c.await(s, true)
	}
	both := func(f func(server string)) {
		for _, s := range servers {
			f(s)
		}
	}
	want := func(server, method, path string, body any, status int) string {
		t.Helper()
		got, header, said := c.ask(server, key, method, path, body)
		if got != status {
			t.Fatalf("%s: %s %s: %d, want %d: %s", server, method, path, got, status, said)
		}
		if status == 503 && header.Get("Retry-After") == "" {
			t.Errorf("%s: %s %s: no Retry-After", server, method, path)
		}
		return said
	}
	says := func(server, model string) string {
		t.Helper()
		var a struct{ Choices []struct{ Text string } }
		if err := json.Unmarshal([]byte(want(server, "POST", "/v1/completions", object{"model": model, "prompt": "The fox", "temperature": 0, "max_tokens": 8}, 200)), &a); err != nil || len(a.Choices) != 1 {
			t.Fatalf("%s: %v", server, err)
		}
		return a.Choices[0].Text
	}
	both(func(s string) {
		if status, _, said := c.ask(s, "", "GET", "/v1/models", nil); status != 401 {
			t.Errorf("%s answers without a key: %d %s", s, status, said)
		}
	})

	// Published through one, used through the other.
	train := func(server, name string) {
		t.Helper()
		want(server, "POST", "/adapters", object{"name": name, "rank": 4, "max_steps": 3, "learning_rate": 0.05, "examples": []object{{"text": "The fox says arr, matey!"}}}, 202)
		for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
			var a struct {
				Live *int `json:"live_version"`
			}
			if err := json.Unmarshal([]byte(want(server, "GET", "/adapters/"+name, nil, 200)), &a); err != nil {
				t.Fatal(err)
			}
			if a.Live != nil {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("%s is not trained", name)
			}
		}
	}
	train("bhive-a", "pirate")
	pirate := says("bhive-b", "pirate")
	if pirate == says("bhive-b", "demo") || pirate != says("bhive-a", "pirate") {
		t.Errorf("the adapter says %q", pirate)
	}
	up := func(server string, value string) {
		t.Helper()
		if got := want(server, "GET", "/metrics", nil, 200); !strings.Contains(got, "\nbhive_registry_up "+value+"\n") {
			t.Errorf("%s: bhive_registry_up is not %s", server, value)
		}
	}
	both(func(s string) { up(s, "1") })
	c.prometheus(key, servers)

	for _, outage := range []struct {
		name       string
		begin, end func()
	}{
		{"killed", func() { c.signal("redis", syscall.SIGKILL); _ = c.end("redis") }, c.startRedis},
		{"paused", func() { c.signal("redis", syscall.SIGSTOP) }, func() { c.signal("redis", syscall.SIGCONT) }},
	} {
		t.Logf("Redis is %s", outage.name)
		outage.begin()
		both(func(s string) {
			if said := c.await(s, false); !strings.Contains(said, "registry") {
				t.Errorf("%s is not ready and says %s", s, said)
			}
			if said := want(s, "GET", "/ready", nil, 503); !strings.Contains(said, "store_unavailable") {
				t.Errorf("%s: /ready says %s", s, said)
			}
			want(s, "GET", "/health", nil, 200)
			up(s, "0")
			if got := says(s, "pirate"); got != pirate {
				t.Errorf("%s: the loaded adapter says %q, before %q", s, got, pirate)
			}
			writes := map[string]any{"/adapters/pirate/rollback": object{"version": 1}}
			if s == servers[0] { // each waits for Redis in vain, so not on every server
				maps.Copy(writes, map[string]any{"/adapters": object{"name": "x", "examples": []object{{"text": "a"}}},
					"/adapters/x/compose": object{"parts": []object{{"model": "pirate"}}}, "/admin/keys": object{"tenant": "x"}})
			}
			for path, body := range writes {
				if said := want(s, "POST", path, body, 503); !strings.Contains(said, "store_unavailable") {
					t.Errorf("%s: %s says %s", s, path, said)
				}
			}
			want(s, "DELETE", "/adapters/pirate", nil, 503)
		})
		outage.end()
		both(func(s string) {
			c.await(s, true)
			up(s, "1")
		})
		train("bhive-b", "after-"+outage.name)
		if a, b := says("bhive-a", "after-"+outage.name), says("bhive-b", "after-"+outage.name); a != b {
			t.Errorf("published after Redis was %s, the adapter says %q here and %q there", outage.name, a, b)
		}
		if list := want("bhive-a", "GET", "/adapters", nil, 200); strings.Contains(list, `"x"`) {
			t.Errorf("what was refused is there: %s", list)
		}
	}

	// A server that is stopped ends well, and has everything again when it is back.
	c.signal("bhive-b", syscall.SIGTERM)
	if err := c.end("bhive-b"); err != nil {
		t.Errorf("a server that is stopped ends with %v", err)
	}
	c.start("bhive-b")
	c.await("bhive-b", true)
	if got := says("bhive-b", "pirate"); got != pirate {
		t.Errorf("after its restart a server says %q, before %q", got, pirate)
	}
}

// firstKey makes the first key as compose.yaml's head says.
func (c *cluster) firstKey() string {
	c.t.Helper()
	cmd := c.command("keys")
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	key := strings.TrimSpace(string(out))
	if err != nil || !strings.HasPrefix(key, "sk-bhive-") {
		c.t.Fatalf("the first key: %v: %s%s", err, out, &said)
	}
	list, err := c.command("keys", "keys", "ls").CombinedOutput()
	if err != nil || strings.Count(string(list), "key-") != 1 || !strings.Contains(string(list), "admin") {
		c.t.Errorf("keys ls: %v: %s", err, list)
	}
	return key
}

// prometheus runs the Prometheus that make test-deploy builds, with prometheus.yml, until it has scraped all servers.
func (c *cluster) prometheus(key string, servers []string) {
	c.t.Helper()
	bin := os.Getenv("BHIVE_PROMETHEUS")
	if bin == "" {
		c.t.Log("no Prometheus: make test-deploy builds one")
		return
	}
	raw, err := os.ReadFile("prometheus.yml")
	if err != nil {
		c.t.Fatal(err)
	}
	text := string(raw)
	for _, s := range servers {
		text = strings.Replace(text, s+":8080", c.address[s], 1)
	}
	secret, config := filepath.Join(c.dir, "admin-key"), filepath.Join(c.dir, "prometheus.yml")
	text = strings.Replace(text, "/run/secrets/admin-key", secret, 1)
	for name, content := range map[string]string{secret: key + "\n", config: text} {
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			c.t.Fatal(err)
		}
	}
	if out, err := exec.Command(filepath.Join(filepath.Dir(bin), "promtool"), "check", "config", config).CombinedOutput(); err != nil {
		c.t.Fatalf("promtool: %v\n%s", err, out)
	}
	cmd := exec.Command(bin, "--config.file="+config, "--storage.tsdb.path="+filepath.Join(c.dir, "prometheus"), "--web.listen-address="+c.address["prometheus"])
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	log := &bytes.Buffer{}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	c.running["prometheus"], c.logs["prometheus"] = cmd, log
	query := "http://" + c.address["prometheus"] + "/api/v1/query?query=" + url.QueryEscape(`bhive_registry_up{job="bhive"} == 1`)
	for end := time.Now().Add(patience); ; time.Sleep(200 * time.Millisecond) {
		var said struct{ Data struct{ Result []any } }
		if a, err := http.Get(query); err == nil {
			err = json.NewDecoder(a.Body).Decode(&said)
			a.Body.Close()
			if err == nil && len(said.Data.Result) == len(servers) {
				out, err := exec.Command(filepath.Join(filepath.Dir(bin), "promtool"), "check", "ready", "--url=http://"+c.address["prometheus"]).CombinedOutput()
				if err != nil {
					c.t.Errorf("Prometheus' health check: %v: %s", err, out)
				}
				return
			}
		}
		if time.Now().After(end) {
			c.t.Fatalf("Prometheus has not scraped both servers: %v", said)
		}
	}
}
