package deploy

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// dockerfile is a Dockerfile in the subset that is understood here.
type dockerfile struct{ stages []*stage }

type stage struct {
	name, from string
	steps      []step
}

// step is an instruction and what follows it.
type step struct{ verb, rest string }

func (d dockerfile) stage(name string) *stage {
	for _, s := range d.stages {
		if s.name == name {
			return s
		}
	}
	return nil
}

func readDockerfile(t *testing.T, name string) dockerfile {
	t.Helper()
	raw, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var d dockerfile
	for line := range strings.Lines(string(raw)) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		verb, rest, _ := strings.Cut(line, " ")
		switch verb {
		case "FROM":
			f := strings.Fields(rest)
			if len(f) != 3 || f[1] != "AS" {
				t.Fatalf("%s: every stage needs a name: %s", name, line)
			}
			d.stages = append(d.stages, &stage{name: f[2], from: f[0]})
		case "ARG", "COPY", "WORKDIR", "RUN", "ENV", "USER", "VOLUME", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT", "CMD":
			if len(d.stages) == 0 || strings.HasSuffix(rest, `\`) {
				t.Fatalf("%s: not understood here: %s", name, line)
			}
			s := d.stages[len(d.stages)-1]
			s.steps = append(s.steps, step{verb, rest})
		default:
			t.Fatalf("%s: not understood here: %s", name, line)
		}
	}
	return d
}

// chain is a stage's steps behind those of the stages that it stands on.
func (d dockerfile) chain(name string) []step {
	s := d.stage(name)
	if s == nil {
		return nil
	}
	return append(d.chain(s.from), s.steps...)
}

// image is what a stage says of the containers made of it.
type image struct {
	env         map[string]string
	entry, cmd  []string
	healthcheck []string
}

func (d dockerfile) image(t *testing.T, name string) image {
	t.Helper()
	out := image{env: map[string]string{}}
	list := func(raw string) (l []string) {
		if err := json.Unmarshal([]byte(raw), &l); err != nil {
			t.Fatalf("%s: %v", raw, err)
		}
		return l
	}
	for _, s := range d.chain(name) {
		switch s.verb {
		case "ENV":
			for _, pair := range strings.Fields(s.rest) {
				k, v, _ := strings.Cut(pair, "=")
				out.env[k] = v
			}
		case "ENTRYPOINT":
			out.entry = list(s.rest)
		case "CMD":
			out.cmd = list(s.rest)
		case "HEALTHCHECK":
			_, raw, _ := strings.Cut(s.rest, "CMD ")
			out.healthcheck = list(raw)
		}
	}
	return out
}

func TestDockerfile(t *testing.T) {
	d := readDockerfile(t, "Dockerfile")
	for i, s := range d.stages {
		known := slices.ContainsFunc(d.stages[:i], func(e *stage) bool { return e.name == s.from })
		if !known && !strings.Contains(s.from, ":") {
			t.Errorf("%s stands on %s, which is neither a stage before it nor an image with a version", s.name, s.from)
		}
		for _, step := range s.steps {
			if from, ok := strings.CutPrefix(strings.Fields(step.rest)[0], "--from="); ok && !slices.ContainsFunc(d.stages[:i], func(e *stage) bool { return e.name == from }) {
				t.Errorf("%s copies from %s, which is no stage before it", s.name, from)
			}
		}
	}
	// The Go that the image brings is the one that the module wants: nothing else is fetched.
	mk, err := os.ReadFile("../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	version := regexp.MustCompile(`GOTOOLCHAIN := go([\d.]+)`).FindSubmatch(mk)
	if version == nil || !strings.HasPrefix(d.stage("source").from, "golang:"+string(version[1])+"-") {
		t.Errorf("the Dockerfile builds with %s, the Makefile with %s", d.stage("source").from, version)
	}
	for _, name := range []string{"cpu", "cuda"} {
		if i := d.image(t, name); len(i.entry) != 1 || i.entry[0] != "bhive" || !slices.Equal(i.cmd, []string{"serve"}) || !slices.Equal(i.healthcheck, []string{"bhive", "ready"}) || i.env["BHIVE_ADDR"] != "0.0.0.0:8080" {
			t.Errorf("%s is %+v", name, i)
		}
	}
}

// The steps of the build stages, run in a directory of their own as Docker would. What apt-get installs must be on the machine. It is slow,
// and the CUDA target fetches its tools: only with BHIVE_DEPLOY=cpu, cuda, or both with a comma.
func TestDockerfileBuilds(t *testing.T) {
	targets := os.Getenv("BHIVE_DEPLOY")
	if targets == "" {
		t.Skip("set BHIVE_DEPLOY=cpu,cuda, as make test-deploy does, to run the Dockerfile's steps")
	}
	d := readDockerfile(t, "Dockerfile")
	for target := range strings.SplitSeq(targets, ",") {
		t.Run(target, func(t *testing.T) {
			work := filepath.Join(t.TempDir(), "src")
			env := append(os.Environ(), "GOTOOLCHAIN=go1.27.3", "GOFLAGS=-buildvcs=false")
			for _, s := range d.chain("build-" + target) {
				switch s.verb {
				case "WORKDIR":
					if err := os.MkdirAll(work, 0o755); err != nil {
						t.Fatal(err)
					}
				case "ARG":
					env = append(env, s.rest)
				case "COPY":
					copyContext(t, strings.Fields(s.rest), work)
				case "RUN":
					command := regexp.MustCompile(`--mount=\S+ `).ReplaceAllString(s.rest, "")
					if strings.HasPrefix(command, "apt-get ") {
						t.Logf("left out: %s", command)
						continue
					}
					cmd := exec.Command("sh", "-c", command)
					cmd.Dir, cmd.Env = work, env
					if out, err := cmd.CombinedOutput(); err != nil {
						t.Fatalf("%s: %v\n%s", command, err, out)
					}
				}
			}
			out, err := exec.Command(filepath.Join(work, "bin", "bhive"), "--version").CombinedOutput()
			if err != nil || strings.TrimSpace(string(out)) != "dev" {
				t.Errorf("the binary says %q, %v", out, err)
			}
			if target == "cpu" {
				if out, _ := exec.Command("ldd", filepath.Join(work, "bin", "bhive")).CombinedOutput(); !bytes.Contains(out, []byte("not a dynamic executable")) {
					t.Errorf("the CPU's binary is not static: %s", out)
				}
			}
			for _, s := range d.stage(target).steps { // what the image takes is there
				if f := strings.Fields(s.rest); s.verb == "COPY" {
					if _, err := os.Stat(filepath.Join(work, strings.TrimPrefix(f[1], "/src/"))); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
}

// copyContext copies what COPY names of the repository: the files that git knows or would, less those that the ignore file leaves out.
func copyContext(t *testing.T, args []string, work string) {
	t.Helper()
	raw, err := os.ReadFile("Dockerfile.dockerignore")
	if err != nil {
		t.Fatal(err)
	}
	ignored := func(name string) bool {
		for line := range strings.Lines(string(raw)) {
			pattern := strings.TrimSpace(line)
			for n := name; n != "."; n = path.Dir(n) {
				base, anywhere := strings.CutPrefix(pattern, "**/")
				if ok, _ := path.Match(pattern, n); ok {
					return true
				}
				if ok, _ := path.Match(base, path.Base(n)); anywhere && ok {
					return true
				}
			}
		}
		return false
	}
	root := os.DirFS("..")
	for _, from := range args[:len(args)-1] {
		err := fs.WalkDir(root, from, func(name string, e fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if name != "." && ignored(name) {
				if e.IsDir() {
					return fs.SkipDir
				}
				return nil
			}
			to := filepath.Join(work, filepath.FromSlash(name))
			if e.IsDir() {
				return os.MkdirAll(to, 0o755)
			}
			if !e.Type().IsRegular() {
				return errors.New(name + " is no plain file")
			}
			b, err := fs.ReadFile(root, name)
			if err != nil {
				return err
			}
			return os.WriteFile(to, b, 0o644)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}
