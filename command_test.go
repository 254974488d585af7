package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// built is the command, built once for all tests here.
var built = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "bhive-test")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "bhive")
	out, err := exec.Command("go", "build", "-o", path, ".").CombinedOutput()
	if err != nil {
		return "", errors.New(string(out))
	}
	return path, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if path, err := built(); err == nil {
		os.RemoveAll(filepath.Dir(path))
	}
	os.Exit(code)
}

// lockedBuffer is a buffer that a process writes while the test reads.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// process is a server under test.
type process struct {
	t    *testing.T
	cmd  *exec.Cmd
	log  lockedBuffer
	url  string
	done chan error
}

// serve starts the command on a free port with the given data directory.
func serve(t *testing.T, data string, flags ...string) *process {
	t.Helper()
	bin, err := built()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{t: t, done: make(chan error, 1)}
	p.cmd = exec.Command(bin, append([]string{"serve", "--addr", "127.0.0.1:0", "--data", data, "--log-format", "json"}, flags...)...)
	p.cmd.Stderr = &p.log
	p.cmd.Stdout = io.Discard
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { p.done <- p.cmd.Wait() }()
	t.Cleanup(func() { p.cmd.Process.Kill() })
	for range 600 {
		for line := range strings.Lines(p.log.String()) {
			var entry struct{ Msg, Address string }
			if json.Unmarshal([]byte(line), &entry) == nil && entry.Msg == "serving" {
				p.url = entry.Address
				return p
			}
		}
		select {
		case err := <-p.done:
			t.Fatalf("the server ended: %v\n%s", err, p.log.String())
		case <-time.After(50 * time.Millisecond):
		}
	}
	t.Fatalf("the server did not start:\n%s", p.log.String())
	return nil
}

// stop ends the server as a supervisor would and checks that it went well.
func (p *process) stop() {
	p.t.Helper()
	p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case err := <-p.done:
		if err != nil {
			p.t.Fatalf("the server ended with %v:\n%s", err, p.log.String())
		}
	case <-time.After(30 * time.Second):
		p.t.Fatalf("the server did not end:\n%s", p.log.String())
	}
}

// run runs a verb against the server.
func (p *process) run(args ...string) (string, error) {
	bin, err := built()
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, bin, args...)
	cmd.Env = append(os.Environ(), "BHIVE_SERVER="+p.url)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (p *process) must(args ...string) string {
	p.t.Helper()
	out, err := p.run(args...)
	if err != nil {
		p.t.Fatalf("bhive %s: %v\n%s\nserver:\n%s", strings.Join(args, " "), err, out, p.log.String())
	}
	return out
}

// TestTuneWhileServing is the README's demonstration: a style is trained on the demo model while streams run on, it is live without a restart,
// its text differs from the base's, and it outlives the server.
func TestTuneWhileServing(t *testing.T) {
	data := t.TempDir()
	p := serve(t, data, "--tpot-target", "25ms") // of a step that takes a few: training gets most of the time
	base := p.must("chat", "-t", "0", "What is a wolf?")

	// Streams in flight over the whole training, each of known length.
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var streams sync.WaitGroup
	var mu sync.Mutex
	texts := map[string]int{}
	for range 3 {
		streams.Go(func() {
			for ctx.Err() == nil {
				body := `{"model": "demo", "prompt": "Once upon a time", "max_tokens": 200, "temperature": 0, "ignore_eos": true, "stream": true, "stream_options": {"include_usage": true}}`
				r, err := http.Post(p.url+"/v1/completions", "application/json", strings.NewReader(body))
				if err != nil {
					t.Error(err)
					return
				}
				var text strings.Builder
				tokens := 0
				err = events(r.Body, func(data []byte) error {
					if string(data) == "[DONE]" {
						return nil
					}
					var chunk struct {
						Choices []struct{ Text string }
						Usage   *struct {
							CompletionTokens int `json:"completion_tokens"`
						}
					}
					if err := json.Unmarshal(data, &chunk); err != nil {
						return err
					}
					for _, c := range chunk.Choices {
						text.WriteString(c.Text)
					}
					if chunk.Usage != nil {
						tokens = chunk.Usage.CompletionTokens
					}
					return nil
				})
				r.Body.Close()
				if err != nil || tokens != 200 {
					t.Errorf("a stream ended with %d of 200 tokens: %v", tokens, err)
				}
				mu.Lock()
				texts[text.String()]++
				mu.Unlock()
			}
		})
	}
	out := p.must("tune", "examples/pirate.jsonl", "--name", "pirate", "--epochs", "5", "--watch", "-p", "What is a wolf?")
	cancel()
	streams.Wait()
	if len(texts) != 1 {
		t.Errorf("greedy streams during the training gave %d different texts", len(texts))
	}
	if !strings.Contains(out, "pirate@1 is live") || !strings.Contains(out, "candidate:") {
		t.Errorf("bhive tune printed:\n%s", out)
	}
	tuned := p.must("chat", "-m", "pirate", "-t", "0", "What is a wolf?")
	if tuned == base || !strings.HasPrefix(tuned, "Arr!") {
		t.Errorf("the base says %q, the adapter %q", base, tuned)
	}
	if again := p.must("chat", "-t", "0", "What is a wolf?"); again != base {
		t.Errorf("the base said %q before and %q after the training", base, again)
	}

	p.must("tune", "examples/pirate.jsonl", "--name", "pirate", "--continue", "--max-steps", "2")
	if out := p.must("adapters", "versions", "pirate"); !strings.Contains(out, "pirate@2") || !strings.Contains(out, "pirate@1") {
		t.Errorf("versions after going on:\n%s", out)
	}
	if out := p.must("adapters", "rollback", "pirate"); !strings.Contains(out, "pirate@1 is live") {
		t.Errorf("rollback said %q", out)
	}
	if out, err := p.run("tune", "examples/pirate.jsonl", "--name", "pirate"); err == nil || !strings.Contains(out, "pirate") {
		t.Errorf("training a name that exists: %v, %q", err, out)
	}
	p.stop()

	p = serve(t, data)
	if again := p.must("chat", "-m", "pirate", "-t", "0", "What is a wolf?"); again != tuned {
		t.Errorf("after a restart the adapter says %q, before %q", again, tuned)
	}
	p.must("adapters", "rm", "pirate")
	if out, err := p.run("chat", "-m", "pirate", "hello"); err == nil || !strings.Contains(out, "does not exist") {
		t.Errorf("a removed adapter answers: %v, %q", err, out)
	}
	if out := p.must("adapters", "ls"); strings.Contains(out, "pirate") {
		t.Errorf("a removed adapter is listed:\n%s", out)
	}
	p.stop()
}

// TestConfiguration: a flag, the environment and a YAML file say the same thing in this order of strength.
func TestConfiguration(t *testing.T) {
	bin, err := built()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "bhive.yaml")
	if err := os.WriteFile(file, []byte("serve:\n  model: from-file\n  addr: 127.0.0.1:0\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, want string
		env        []string
		args       []string
	}{
		{"file", "from-file", nil, nil},
		{"environment over the file", "from-env", []string{"BHIVE_MODEL=from-env"}, nil},
		{"flag over both", "from-flag", []string{"BHIVE_MODEL=from-env"}, []string{"--model", "from-flag"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			cmd := exec.Command(bin, append([]string{"serve", "--config", file, "--data", t.TempDir()}, c.args...)...)
			cmd.Env = append(os.Environ(), c.env...)
			out, err := cmd.CombinedOutput()
			if err == nil || !strings.Contains(string(out), c.want) {
				t.Errorf("want an error that names the model %s, got %v:\n%s", c.want, err, out)
			}
		})
	}
}

// TestConfigurationUnknown: what a YAML file says and no verb would read is refused; every verb's flags may stand in one file.
func TestConfigurationUnknown(t *testing.T) {
	bin, err := built()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ text, want string }{
		{"model: demo\n", "model is no flag"},
		{"serve:\n  modle: demo\n", "serve-modle is no flag"},
		{"serve: {model: demo, batches: [1]}\n", "serve-batches is no flag"},
		{"log-level: info\nserve: {model: demo}\nchat:\nbench: {cpu: {batches: [1, 8]}}\nadapters-ls-server: http://127.0.0.1:1\n", "no server answers at http://127.0.0.1:1"},
	} {
		file := filepath.Join(t.TempDir(), "bhive.yaml")
		if err := os.WriteFile(file, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(bin, "adapters", "ls", "--config", file).CombinedOutput()
		if err == nil || !strings.Contains(string(out), c.want) {
			t.Errorf("%q: want %q, got %v:\n%s", c.text, c.want, err, out)
		}
	}
}

// TestHint: the commands that a server shows ask that server.
func TestHint(t *testing.T) {
	if said := hint("127.0.0.1:8080", "demo"); strings.Contains(said, "--server") || !strings.Contains(said, `"model": "demo"`) {
		t.Errorf("at the address where the verbs look: %s", said)
	}
	if said := hint("[::1]:9090", "demo"); strings.Count(said, " --server http://[::1]:9090 ") != 2 || !strings.Contains(said, "curl http://[::1]:9090/") {
		t.Errorf("at another address: %s", said)
	}
}

func TestRefuses(t *testing.T) {
	bin, err := built()
	if err != nil {
		t.Fatal(err)
	}
	keyless := t.TempDir()
	held := serve(t, filepath.Join(t.TempDir(), "held"))
	for _, c := range []struct {
		want string
		args []string
	}{
		{"no server answers at http://127.0.0.1:9", []string{"chat", "--server", "http://127.0.0.1:9", "hello"}},
		{"0.0.0.0:0; make one with: bhive keys create --registry " + keyless + " --tenant default --role admin", []string{"serve", "--addr", "0.0.0.0:0", "--data", keyless}},
		{"--adapter-slots must be at least 1", []string{"serve", "--adapter-slots", "0", "--addr", "127.0.0.1:0", "--data", t.TempDir()}},
		{"--adapter-slots must be at least 1", []string{"serve", "--adapter-slots=-1", "--addr", "127.0.0.1:0", "--data", t.TempDir()}},
		{"--lora-root: open /absent", []string{"serve", "--lora-root", "/absent", "--addr", "127.0.0.1:0", "--data", t.TempDir()}},
		{"int8 weights are not on the GPU yet", []string{"serve", "--device", "cuda", "--weights", "int8", "--addr", "127.0.0.1:0", "--data", t.TempDir()}},
		{"make smollm2", []string{"serve", "--model", "smollm2", "--model-dirs", t.TempDir(), "--addr", "127.0.0.1:0", "--data", t.TempDir()}},
		{"in use by another process", []string{"serve", "--addr", "127.0.0.1:0", "--data", held.cmd.Args[5]}},
		{"unexpected argument", []string{"serve", "everything"}},
		{"no such file", []string{"tune", "absent.jsonl", "--name", "x", "--server", held.url}},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // of what it does not refuse
		out, err := exec.CommandContext(ctx, bin, c.args...).CombinedOutput()
		cancel()
		if err == nil || !strings.Contains(string(out), c.want) {
			t.Errorf("bhive %s: want an error with %q, got %v:\n%s", strings.Join(c.args, " "), c.want, err, out)
		}
	}
	held.stop()
}

// TestKeys: keys made on a registry without a server guard the server that opens it, and its server manages them then.
func TestKeys(t *testing.T) {
	data := t.TempDir()
	offline := &process{t: t}
	if out, err := offline.run("keys", "create", "--data", data, "--tenant", "anna"); err == nil {
		t.Errorf("a first key that is a tenant's: %s", out)
	}
	admin := strings.TrimSpace(offline.must("keys", "create", "--data", data, "--tenant", "default", "--role", "admin"))
	p := serve(t, data)
	if out, err := p.run("adapters", "ls"); err == nil || !strings.Contains(out, "API key") {
		t.Errorf("without a key: %v, %s", err, out)
	}
	p.must("adapters", "ls", "--api-key", admin)
	anna := strings.TrimSpace(p.must("keys", "create", "--data", data, "--api-key", admin, "--tenant", "anna", "--name", "hers")) // the server holds it
	p.must("adapters", "ls", "--api-key", anna)
	list := p.must("keys", "ls", "--api-key", admin)
	id := ""
	for line := range strings.Lines(list) {
		if f := strings.Fields(line); strings.Contains(line, "hers") {
			id = f[0]
		}
	}
	if id == "" || strings.Contains(list, anna) {
		t.Fatalf("keys:\n%s", list)
	}
	if out, err := p.run("keys", "ls", "--api-key", anna); err == nil {
		t.Errorf("a tenant lists keys:\n%s", out)
	}
	p.must("keys", "rm", id, "--api-key", admin)
	if _, err := p.run("adapters", "ls", "--api-key", anna); err == nil {
		t.Error("a revoked key is good")
	}
	p.stop()
	if out := offline.must("keys", "ls", "--data", data); !strings.Contains(out, "default") || strings.Contains(out, "hers") {
		t.Errorf("keys without the server:\n%s", out)
	}
}
