package deploy

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"maps"
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
)

// cluster runs services of compose.yaml as processes of this machine. Their commands and variables are the file's; what differs is that
// host names and ports, and the directories of the image, are replaced by this machine's.
type cluster struct {
	t       *testing.T
	file    compose
	image   image
	address map[string]string // service → host:port here
	dir     string
	running map[string]*exec.Cmd
	logs    map[string]*bytes.Buffer
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{t: t, file: readCompose(t, "compose.yaml"), image: readDockerfile(t, "Dockerfile").image(t, "cpu"), address: map[string]string{}, dir: t.TempDir(),
		running: map[string]*exec.Cmd{}, logs: map[string]*bytes.Buffer{}}
	for name := range c.file.Services {
		c.address[name] = freeAddress(t)
	}
	t.Cleanup(func() {
		for name := range c.running {
			c.signal(name, syscall.SIGKILL)
			_ = c.running[name].Wait()
		}
		if t.Failed() {
			for name, log := range c.logs {
				t.Logf("%s:\n%s", name, log)
			}
		}
	})
	return c
}

// here replaces what is the containers' own.
func (c *cluster) here(service, value string) string {
	value = strings.Replace(value, "redis:6379", c.address["redis"], 1)
	_, port, _ := net.SplitHostPort(c.address[service])
	value = strings.Replace(value, "0.0.0.0:8080", "0.0.0.0:"+port, 1)
	switch value {
	case "/data", "/models":
		return filepath.Join(c.dir, service+value)
	}
	return value
}

// command is a service's, as a container would run it.
func (c *cluster) command(service string, args ...string) *exec.Cmd {
	c.t.Helper()
	s := c.file.Services[service]
	if args == nil {
		args = s.Command
	}
	var cmd *exec.Cmd
	if s.Build.Target != "" { // the image of this repository
		bin, err := built()
		if err != nil {
			c.t.Fatal(err)
		}
		cmd = exec.Command(bin, args...)
		cmd.Env = []string{"HOME=" + c.dir, "PATH="}
		env := maps.Clone(c.image.env)
		maps.Copy(env, s.Environment)
		for k, v := range env {
			cmd.Env = append(cmd.Env, k+"="+c.here(service, v))
		}
	} else {
		cmd = exec.Command(args[0], args[1:]...)
	}
	cmd.Dir = filepath.Join(c.dir, service)
	for _, d := range []string{"data", "models"} {
		if err := os.MkdirAll(filepath.Join(cmd.Dir, d), 0o755); err != nil {
			c.t.Fatal(err)
		}
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

func (c *cluster) start(service string, extra ...string) {
	c.t.Helper()
	cmd := c.command(service, append(slices.Clone(c.file.Services[service].Command), extra...)...)
	log := c.logs[service]
	if log == nil {
		log = &bytes.Buffer{}
		c.logs[service] = log
	}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	c.running[service] = cmd
}

func (c *cluster) startRedis() {
	c.t.Helper()
	_, port, _ := net.SplitHostPort(c.address["redis"])
	c.start("redis", "--port", port, "--bind", "127.0.0.1")
}

func (c *cluster) signal(service string, sig syscall.Signal) {
	_ = c.running[service].Process.Signal(sig) // one that has ended needs none
}

// end waits for a service that was told to end.
func (c *cluster) end(service string) error {
	err := c.running[service].Wait()
	delete(c.running, service)
	return err
}

// healthy is the outcome of a service's health check.
func (c *cluster) healthy(service string) (bool, string) {
	c.t.Helper()
	test := slices.Clone(c.file.Services[service].Healthcheck.Test[1:])
	var cmd *exec.Cmd
	if test[0] == "bhive" {
		cmd = c.command(service, test[1:]...)
		cmd.Env = append(cmd.Env, "BHIVE_SERVER=http://"+c.address[service])
	} else {
		host, port, _ := net.SplitHostPort(c.address[service])
		cmd = exec.Command(test[0], append([]string{"-h", host, "-p", port}, test[1:]...)...)
	}
	out, err := cmd.CombinedOutput()
	return err == nil, string(out)
}

// await waits until what a service's health check says is as wanted, and gives its last words.
func (c *cluster) await(service string, want bool) string {
	c.t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
		got, said := c.healthy(service)
		if got == want {
			return said
		}
		if time.Now().After(end) {
			c.t.Fatalf("%s: healthy is %v: %s", service, got, said)
		}
	}
}

// ask sends a request with an API key to a service.
func (c *cluster) ask(service, key, method, path string, body any) (int, http.Header, string) {
	c.t.Helper()
	var r io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			c.t.Fatal(err)
		}
		r = bytes.NewReader(b)
	}
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	q, err := http.NewRequestWithContext(ctx, method, "http://"+c.address[service]+path, r)
	if err != nil {
		c.t.Fatal(err)
	}
	q.Header.Set("Content-Type", "application/json")
	if key != "" {
		q.Header.Set("Authorization", "Bearer "+key)
	}
	a, err := http.DefaultClient.Do(q)
	if err != nil {
		c.t.Fatal(err)
	}
	defer a.Body.Close()
	b, err := io.ReadAll(a.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	return a.StatusCode, a.Header, string(b)
}
