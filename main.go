// Command bhive serves one frozen language model and a hive of adapters on it, and trains those adapters online. README.md shows it at
// work; `bhive --help` lists its verbs. Only this package reads flags, the environment and the configuration file.
package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"github.com/alecthomas/kong"
	kongyaml "github.com/alecthomas/kong-yaml"
	"gopkg.in/yaml.v3"
)

// version is set by the Makefile's -ldflags.
var version = "dev"

// cli is the whole command line.
type cli struct {
	Config    kong.ConfigFlag  `help:"YAML file with flags by their names, a command's below its name, as in serve: {model: demo}; ./bhive.yaml and ~/.config/bhive.yaml are read where they exist." placeholder:"FILE"`
	LogLevel  slog.Level       `help:"Least severe messages to log: debug, info, warn or error." default:"info"`
	LogFormat string           `help:"Form of log lines: ${enum}." enum:"text,json" default:"text"`
	Version   kong.VersionFlag `help:"Print the version and exit." env:"-"`

	Serve    serveCmd    `cmd:"" help:"Serve a model and its adapters over HTTP."`
	Ready    readyCmd    `cmd:"" help:"Say whether a server is ready for requests; where it is not, say why and exit with 1."`
	Chat     chatCmd     `cmd:"" help:"Talk to a model or an adapter of a running server."`
	Tune     tuneCmd     `cmd:"" help:"Train an adapter on a running server; it ends live."`
	Adapters adaptersCmd `cmd:"" help:"List, show, roll back, remove, import and export adapters of a running server."`
	Keys     keysCmd     `cmd:"" help:"Create, list and revoke the API keys of a registry."`
	Registry registryCmd `cmd:"" help:"Copy a registry to another: a directory to Redis, or back."`
	Plan     planCmd     `cmd:"" help:"Predict a server's memory by tiers, its steps' times and its swaps, for a model, tenants and a device that need not be here."`
	Bench    struct {
		CPU benchCmd    `cmd:"" name:"cpu" default:"withargs" help:"Measure decoding, prefill, adapters, training and HTTP on this machine's cores (or the device that --device names)."`
		GPU benchGPUCmd `cmd:"" name:"gpu" help:"Measure a GPU: steps, the whole engine, adapters that swap, S-LoRA's workload."`
	} `cmd:"" help:"Measure speed on this machine."`
}

const description = `One frozen language model, a hive of adapters on it, served in one batch and trained online.

Start a server with "bhive serve", then try "bhive chat" and "bhive tune" against it. Every flag can also be given in the environment
(BHIVE_ and its name in capitals, as BHIVE_MODEL) and in a YAML file (see --config).`

func main() {
	var c cli
	parser := kong.Must(&c, kong.Name("bhive"), kong.Description(description), kong.UsageOnError(), kong.DefaultEnvars("BHIVE"),
		kong.Configuration(loadFile, "bhive.yaml", "~/.config/bhive.yaml"), kong.Vars{"version": version},
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 120}))
	parsed, err := parser.Parse(os.Args[1:])
	parser.FatalIfErrorf(err)
	parser.FatalIfErrorf(checkNumbers(parsed.Flags()))
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	parsed.BindTo(ctx, (*context.Context)(nil))
	if err := parsed.Run(newLog(c.LogLevel, c.LogFormat)); err != nil {
		stop()
		fmt.Fprintln(os.Stderr, "bhive:", err)
		os.Exit(1)
	}
}

// configFile is a configuration file; the environment is stronger than it.
type configFile struct {
	kong.Resolver
	name string
	keys []string // joined by hyphens, however they are nested
}

// loadFile reads a configuration file.
func loadFile(r io.Reader) (kong.Resolver, error) {
	text, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	f := &configFile{name: "configuration"}
	if n, ok := r.(interface{ Name() string }); ok {
		f.name = n.Name()
	}
	if f.Resolver, err = kongyaml.Loader(bytes.NewReader(text)); err != nil {
		return nil, fmt.Errorf("%s: %w", f.name, err)
	}
	var tree map[string]any
	if err := yaml.Unmarshal(text, &tree); err != nil {
		return nil, fmt.Errorf("%s: %w", f.name, err)
	}
	f.keys = leaves(nil, "", tree)
	return f, nil
}

// leaves are the keys of a tree that have no keys below them.
func leaves(keys []string, above string, tree map[string]any) []string {
	for k, v := range tree {
		if below, ok := v.(map[string]any); ok {
			keys = leaves(keys, above+k+"-", below)
		} else if v != nil {
			keys = append(keys, above+k)
		}
	}
	return keys
}

func (f *configFile) Resolve(c *kong.Context, parent *kong.Path, flag *kong.Flag) (any, error) {
	for _, name := range flag.Envs {
		if _, set := os.LookupEnv(name); set {
			return nil, nil
		}
	}
	return f.Resolver.Resolve(c, parent, flag)
}

// Validate refuses keys that are no flag of any verb: they would be ignored.
func (f *configFile) Validate(app *kong.Application) error {
	known := map[string]bool{}
	var visit func(n *kong.Node, above string)
	visit = func(n *kong.Node, above string) {
		for _, flag := range n.Flags {
			known[above+flag.Name] = true
		}
		for _, child := range n.Children {
			visit(child, above+child.Name+"-")
		}
	}
	visit(app.Node, "")
	slices.Sort(f.keys)
	for _, k := range f.keys {
		if !known[k] {
			return fmt.Errorf("%s: %s is no flag; a command's flags stand below its name, as in: serve: {model: demo}", f.name, k)
		}
	}
	return nil
}

func newLog(level slog.Level, format string) *slog.Logger {
	options := &slog.HandlerOptions{Level: level}
	if format == "json" {
		return slog.New(slog.NewJSONHandler(os.Stderr, options))
	}
	return slog.New(slog.NewTextHandler(os.Stderr, options))
}
