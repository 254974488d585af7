package main

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
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

// command runs a program in dir with more environment and returns what it said.
func command(t *testing.T, dir string, env []string, name string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, name, args...)
	c.Dir, c.Env = dir, append(os.Environ(), env...)
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
	if testing.Short() {
		t.Skip("the clients take a while to install")
	}
	root, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	from := func(parts ...string) string { return filepath.Join(append([]string{root, "clients"}, parts...)...) }
	suites := []suite{
		{name: "python", needs: "python3", list: from("python", "requirements.txt"),
			install: [][]string{{"python3", "-m", "venv", "venv"}, {"venv/bin/pip", "install", "-q", "--disable-pip-version-check", "-r", from("python", "requirements.txt")}},
			run:     []string{"venv/bin/python", from("python", "test_openai.py")}},
		{name: "node", needs: "npm", list: from("node", "package.json"),
			install: [][]string{{"cp", from("node", "package.json"), "."}, {"npm", "install", "--ignore-scripts", "--no-audit", "--no-fund"}},
			run:     []string{"sh", "-c", "cp " + from("node", "openai.test.mjs") + " . && node --test"}},
		{name: "go", needs: "go", list: from("go", "go.sum"), in: from("go"),
			install: [][]string{{"go", "-C", from("go"), "mod", "download"}},
			run:     []string{"go", "test", "-count=1", "./..."}},
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
