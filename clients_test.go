package main

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// unavailable ends a test that this machine cannot run: a skip, but a failure where BHIVE_CLIENTS=required says that it must run.
func unavailable(t *testing.T, format string, args ...any) {
	t.Helper()
	if os.Getenv("BHIVE_CLIENTS") == "required" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

// command runs a program in dir with more environment and returns what it said. It ends before the test's time does, so that this is said too.
func command(t *testing.T, dir string, env []string, name string, args ...string) (string, error) {
	t.Helper()
	ctx := t.Context()
	if end, ok := t.Deadline(); ok {
		limited, cancel := context.WithDeadline(ctx, end.Add(-20*time.Second))
		defer cancel()
		ctx = limited
	}
	c := exec.CommandContext(ctx, name, args...)
	c.Dir, c.Env = dir, append(os.Environ(), env...)
	c.Cancel, c.WaitDelay = func() error { return c.Process.Signal(syscall.SIGTERM) }, 5*time.Second
	out, err := c.CombinedOutput()
	return string(out), err
}

// suite installs a client's packages into dir, unless those that list says are there, and runs its tests.
type suite struct {
	name, needs string // program that must be here
	list        string // file that pins the packages
	install     [][]string
	run         []string
	in          string // folder that it runs in: dir where empty
}

// TestClients runs OpenAI's official clients, unmodified, against the running command: see the folder clients.
func TestClients(t *testing.T) {
	from := clientsFolder(t)
	runSuites(t, []suite{
		{name: "python", needs: "python3", list: from("python", "requirements.txt"),
			install: [][]string{{"python3", "-m", "venv", "venv"}, {"venv/bin/pip", "install", "-q", "--disable-pip-version-check", "-r", from("python", "requirements.txt")}},
			run:     []string{"venv/bin/python", from("python", "test_openai.py")}},
		{name: "node", needs: "npm", list: from("node", "package.json"),
			install: [][]string{{"cp", from("node", "package.json"), "."}, {"npm", "install", "--ignore-scripts", "--no-audit", "--no-fund"}},
			run:     []string{"sh", "-c", "cp " + from("node", "openai.test.mjs") + " . && exec node --test --test-timeout=120000"}},
		{name: "go", needs: "go", list: from("go", "go.sum"), in: from("go"),
			install: [][]string{{"go", "-C", from("go"), "mod", "download"}},
			run:     []string{"go", "test", "-count=1", "-vet=off", "./..."}},
	})
}

// TestLangChain runs LangChain's ChatOpenAI and LiteLLM against the running command. They are large, so only where they are asked for.
func TestLangChain(t *testing.T) {
	if os.Getenv("BHIVE_LANGCHAIN") == "" {
		t.Skip("make test-langchain runs it")
	}
	from := clientsFolder(t)
	list := from("python", "langchain-requirements.txt")
	runSuites(t, []suite{{name: "langchain", needs: "python3", list: list,
		install: [][]string{{"python3", "-m", "venv", "venv"}, {"venv/bin/pip", "install", "-q", "--disable-pip-version-check", "-r", list}},
		run:     []string{"env", "LITELLM_LOCAL_MODEL_COST_MAP=True", "venv/bin/python", "-W", "ignore", from("python", "test_langchain.py")}}})
}

// TestSchemathesis sends what Schemathesis makes of openapi.yaml: no 5xx, and no answer that the contract does not know.
func TestSchemathesis(t *testing.T) {
	if os.Getenv("BHIVE_SCHEMATHESIS") == "" {
		t.Skip("make test-schemathesis runs it")
	}
	from := clientsFolder(t)
	list := from("schemathesis", "requirements.txt")
	s := suite{name: "schemathesis", needs: "python3", list: list, install: [][]string{{"python3", "-m", "venv", "venv"},
		{"venv/bin/pip", "install", "-q", "--disable-pip-version-check", "-r", list}}}
	dir := from("..", ".cache", "clients", s.name)
	s.prepare(t, dir)
	data := t.TempDir()
	bin, err := built()
	if err != nil {
		t.Fatal(err)
	}
	out, err := command(t, dir, nil, bin, "keys", "create", "--data", data, "--tenant", "default", "--role", "admin")
	key := regexp.MustCompile(`sk-\S+`).FindString(out)
	if err != nil || key == "" {
		t.Fatalf("making a key: %v\n%s", err, out)
	}
	p := serve(t, data, "--max-context", "128")
	out, err = command(t, dir, []string{"SCHEMATHESIS_HOOKS=hooks", "PYTHONPATH=" + from("schemathesis"), "BHIVE_URL=" + p.url, "BHIVE_API_KEY=" + key},
		"venv/bin/st", "run", from("..", "openapi.yaml"), "--url", p.url, "-H", "Authorization: Bearer "+key, "--phases", "examples,coverage,fuzzing", "-n", "60", "--seed", "1",
		"-c", "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,response_schema_conformance",
		"--suppress-health-check", "all", "--warnings", "off", "--continue-on-failure", "--request-timeout", "60")
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	t.Log(out)
	for line := range strings.Lines(p.log.String()) {
		if strings.Contains(line, `"level":"ERROR"`) || strings.Contains(line, `"status":5`) {
			t.Error(line)
		}
	}
	p.stop()
}

// clientsFolder gives paths in the folder clients.
func clientsFolder(t *testing.T) func(parts ...string) string {
	t.Helper()
	if testing.Short() {
		t.Skip("the clients take a while to install")
	}
	root, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	return func(parts ...string) string { return filepath.Join(append([]string{root, "clients"}, parts...)...) }
}

// runSuites runs suites one after the other against one server.
func runSuites(t *testing.T, suites []suite) {
	root, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	p := serve(t, t.TempDir())
	for _, s := range suites {
		t.Run(s.name, func(t *testing.T) {
			dir := filepath.Join(root, ".cache", "clients", s.name)
			s.prepare(t, dir)
			if s.in == "" {
				s.in = dir
			}
			out, err := command(t, s.in, []string{"OPENAI_BASE_URL=" + p.url + "/v1", "OPENAI_API_KEY=unused", "EXAMPLES=" + filepath.Join(root, "examples", "pirate.jsonl")},
				s.run[0], s.run[1:]...)
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			t.Log(out)
		})
	}
	p.stop()
}

func (s *suite) prepare(t *testing.T, dir string) {
	t.Helper()
	if _, err := exec.LookPath(s.needs); err != nil {
		unavailable(t, "there is no %s", s.needs)
	}
	want, err := os.ReadFile(s.list)
	if err != nil {
		t.Fatal(err)
	}
	stamp := filepath.Join(dir, "installed")
	if have, err := os.ReadFile(stamp); err == nil && bytes.Equal(have, want) {
		return
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, line := range s.install {
		if out, err := command(t, dir, nil, line[0], line[1:]...); err != nil {
			unavailable(t, "installing the client: %v: %v\n%s", line, err, out)
		}
	}
	if err := os.WriteFile(stamp, want, 0o644); err != nil {
		t.Fatal(err)
	}
}
