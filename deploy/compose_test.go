package deploy

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gopkg.in/yaml.v3"
)

// compose is what the tests read of compose.yaml.
type compose struct {
	Services map[string]service
	Secrets  map[string]struct{ File string }
	Volumes  map[string]any
}

type service struct {
	Image       string
	Build       struct{ Context, Dockerfile, Target string }
	Command     []string
	Environment map[string]string
	Volumes     []string
	Secrets     []string
	Profiles    []string
	Ports       []string
	Restart     string
	DependsOn   map[string]struct{ Condition string } `yaml:"depends_on"`
	StopGrace   time.Duration                         `yaml:"stop_grace_period"`
	Healthcheck struct {
		Test              []string
		Interval, Timeout time.Duration
		StartPeriod       time.Duration `yaml:"start_period"`
		StartInterval     time.Duration `yaml:"start_interval"`
		Disable           bool
	}
	Deploy any
}

func readCompose(t *testing.T, name string) compose {
	t.Helper()
	raw, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	// The variables that it may be given have defaults.
	text := strings.NewReplacer("${BHIVE_TARGET:-cpu}", "cpu", "${BHIVE_MODEL:-demo}", "demo").Replace(string(raw))
	if strings.Contains(text, "${") {
		t.Errorf("%s reads a variable that the tests do not know", name)
	}
	var c compose
	if err := yaml.Unmarshal([]byte(text), &c); err != nil {
		t.Fatal(err)
	}
	return c
}

// What one part of the files says of another is so.
func TestComposeHoldsTogether(t *testing.T) {
	c := readCompose(t, "compose.yaml")
	for name, s := range c.Services {
		for on, d := range s.DependsOn {
			if other, ok := c.Services[on]; !ok || d.Condition == "service_healthy" && len(other.Healthcheck.Test) == 0 {
				t.Errorf("%s waits for %s, which has no health check", name, on)
			}
		}
		if len(s.Healthcheck.Test) == 0 && !slices.Contains(s.Profiles, "setup") {
			t.Errorf("%s has no health check", name)
		}
		if len(s.Healthcheck.Test) > 0 && (s.Healthcheck.Test[0] != "CMD" || s.Healthcheck.Interval <= 0 || s.Healthcheck.Timeout <= 0) {
			t.Errorf("%s has the health check %+v", name, s.Healthcheck)
		}
		for _, secret := range s.Secrets {
			if _, ok := c.Secrets[secret]; !ok {
				t.Errorf("%s wants the secret %s, which there is not", name, secret)
			}
		}
		for _, v := range s.Volumes {
			from, _, _ := strings.Cut(v, ":")
			if _, ok := c.Volumes[from]; !ok && !strings.HasPrefix(from, "./") {
				t.Errorf("%s mounts the volume %s, which there is not", name, from)
			}
			if strings.HasPrefix(from, "./") && from != "./models" {
				if _, err := os.Stat(from); err != nil {
					t.Errorf("%s mounts %s: %v", name, from, err)
				}
			}
		}
		for _, p := range s.Ports {
			if !strings.HasPrefix(p, "127.0.0.1:") {
				t.Errorf("%s answers beyond this machine: %s", name, p)
			}
		}
		if s.Build.Dockerfile != "" {
			d := readDockerfile(t, filepath.Join(s.Build.Context, s.Build.Dockerfile))
			if d.stage(s.Build.Target) == nil {
				t.Errorf("%s builds the target %s, which the Dockerfile has not", name, s.Build.Target)
			}
		}
	}
	for name := range readCompose(t, "compose.cuda.yaml").Services {
		if _, ok := c.Services[name]; !ok {
			t.Errorf("compose.cuda.yaml changes %s, which compose.yaml has not", name)
		}
	}
}

// scrape is what the tests read of prometheus.yml.
type scrape struct {
	ScrapeConfigs []struct {
		JobName       string `yaml:"job_name"`
		MetricsPath   string `yaml:"metrics_path"`
		Authorization struct {
			CredentialsFile string `yaml:"credentials_file"`
		}
		StaticConfigs []struct{ Targets []string } `yaml:"static_configs"`
	} `yaml:"scrape_configs"`
}

// Prometheus asks every server, with a key that it is given.
func TestPrometheusAsksAll(t *testing.T) {
	c := readCompose(t, "compose.yaml")
	raw, err := os.ReadFile("prometheus.yml")
	if err != nil {
		t.Fatal(err)
	}
	var p scrape
	if err := yaml.Unmarshal(raw, &p); err != nil {
		t.Fatal(err)
	}
	var want, got []string
	for name, s := range c.Services {
		if len(s.Command) > 0 && s.Command[0] == "serve" {
			want = append(want, name+":8080")
		}
	}
	for _, s := range p.ScrapeConfigs {
		secret := strings.TrimPrefix(s.Authorization.CredentialsFile, "/run/secrets/")
		if !slices.Contains(c.Services["prometheus"].Secrets, secret) {
			t.Errorf("%s reads %q, which prometheus is not given", s.JobName, s.Authorization.CredentialsFile)
		}
		for _, targets := range s.StaticConfigs {
			got = append(got, targets.Targets...)
		}
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(want, got) || len(want) != 2 {
		t.Errorf("prometheus asks %v, the servers are %v", got, want)
	}
}
