package main

import (
	"context"
	"crypto/rand"
	_ "embed"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"bhive/adapters"
	"bhive/finetune"
	"bhive/infer"
	"bhive/infer/tokenizer"
	"bhive/server"

	"golang.org/x/sync/errgroup"
)

//go:embed openapi.yaml
var openAPI []byte

// serveCmd serves a model.
type serveCmd struct {
	modelFlags
	basisFlags
	Addr         string        `help:"Address to listen on. Without API keys (bhive keys) it must be a loopback address." default:"127.0.0.1:8080"`
	Data         string        `help:"Directory of the embedded registry: adapters, jobs, basis; default: ~/.bhive." placeholder:"DIR"`
	LoraRoot     string        `help:"Directory below which /v1/load_lora_adapter may read PEFT adapters; default: it may not." placeholder:"DIR"`
	Registry     string        `help:"Registry in place of that directory: another directory, or a Redis that servers share, as redis://HOST:PORT, rediss://… (TLS), ?master=NAME (Sentinel), ?cluster=true." placeholder:"URL"`
	Worker       string        `help:"This server's name among those that share the registry; with it, it goes on with its own jobs after a restart. Default: host name and port." placeholder:"NAME"`
	OpenMetrics  bool          `help:"Give /metrics without an API key; it names tenants and adapters."`
	DrainTimeout time.Duration `help:"How long running requests may go on at shutdown." default:"30s"`

	MaxSeqs      int           `help:"Sequences that run at once." default:"64"`
	MaxTokens    int           `help:"Tokens of a step: decodes first, then chunks of prompts." default:"512"`
	MaxContext   int           `help:"Longest prompt and text together, in tokens; default: the model's."`
	BlockTokens  int           `help:"Tokens of a KV block." default:"16"`
	KVMiB        int64         `name:"kv-mib" help:"Memory of the KV cache, in MiB." default:"512"`
	QueueLimit   int           `help:"Requests that may wait." default:"1024"`
	PrefixCache  bool          `help:"Reuse the K and V of common prefixes." default:"true" negatable:""`
	TrainShare   float64       `help:"Share of the time that training may take while requests run." default:"0.2"`
	TrainSlice   time.Duration `help:"The most that a request waits for a slice of training." default:"20ms"`
	AdapterSlots int           `help:"Adapters on the device at once." default:"256"`
	DeviceMiB    int64         `name:"adapter-device-mib" help:"Memory for adapters on the device, in MiB." default:"1024"`
	HostMiB      int64         `name:"adapter-host-mib" help:"Memory for adapters beside it, in MiB." default:"4096"`
	TrainTokens  int           `help:"Tokens of a training micro-batch, and so of the longest example; default: 1024, or the model's context."`
	TrainMemory  string        `help:"What training recomputes to need less memory: none, mlp or layer; auto: as little as fits." default:"auto" enum:"auto,none,mlp,layer"`
}

// registry is the registry's directory or URL.
func (c *serveCmd) registry() (string, error) {
	if c.Registry != "" {
		return c.Registry, nil
	}
	if c.Data != "" {
		return c.Data, nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("no home directory for the registry, give one with --data: %w", err)
	}
	return filepath.Join(home, ".bhive"), nil
}

// worker is a name that no other server of the registry has.
func (c *serveCmd) worker() string {
	host, err := os.Hostname()
	_, port, _ := net.SplitHostPort(c.Addr)
	switch {
	case c.Worker != "":
		return c.Worker
	case err != nil || port == "0" || port == "":
		return "bhive-" + rand.Text()
	}
	return host + ":" + port
}

// Run serves until ctx ends and everything has drained.
func (c *serveCmd) Run(ctx context.Context, log *slog.Logger) (err error) {
	name, err := c.registry()
	if err != nil {
		return err
	}
	store, err := openStore(ctx, name, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()

	var encode func(string) []int
	l, err := c.load(ctx, log, storedBasis(store, c.basisFlags, log, func(s string) []int { return encode(s) }),
		func(t *tokenizer.Tokenizer) { encode = func(s string) []int { return t.Encode(s, true) } })
	if err != nil {
		return err
	}
	defer l.close()

	var engine *infer.Engine
	stream := l.backend.NewStream()
	device, err := infer.NewDevice(l.backend, stream, c.AdapterSlots)
	if err != nil {
		return err
	}
	pool, err := adapters.NewPool(adapters.PoolConfig{Geometry: l.model.Geometry, DType: device.DType(), Slots: c.AdapterSlots, DeviceBytes: c.DeviceMiB << 20,
		HostBytes: c.HostMiB << 20, Wake: func() { engine.Wake() }, Check: adapters.CheckVersion(l.model.Basis)}, store, device)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, pool.Close()) }()
	registry := adapters.NewRegistry(store, func(ch adapters.Change) {
		if ch.Kind == adapters.VersionDeleted || ch.Kind == adapters.AdapterDeleted {
			pool.Forget(ch.Tenant, ch.Name, ch.Number)
		}
	})
	metrics := server.NewMetrics()
	engine, err = infer.New(infer.Config{MaxSeqs: c.MaxSeqs, MaxTokens: c.MaxTokens, MaxContext: c.MaxContext, BlockTokens: c.BlockTokens, KVBytes: c.KVMiB << 20,
		QueueLimit: c.QueueLimit, NoPrefixCache: !c.PrefixCache, TrainShare: c.TrainShare, TrainSlice: c.TrainSlice, Observer: metrics,
		Graphs: !l.backend.Info().CopyInPlace, Overlap: !l.backend.Info().CopyInPlace}, l.model, pool, device, l.tokenizer)
	if err != nil {
		return err
	}
	if err := engine.Open(); err != nil {
		return err
	}
	defer engine.Close()
	jobs, err := finetune.New(finetune.Config{Worker: c.worker(), Trainer: finetune.TrainerConfig{BatchTokens: c.TrainTokens, MemoryPlan: c.TrainMemory}},
		finetune.Deps{Model: l.model, Registry: registry, Encoder: finetune.NewEncoder(l.tokenizer, l.template, engine.Config().EOS), Wake: engine.Wake, Log: log})
	if err != nil {
		return err
	}
	info := l.backend.Info()
	s, err := server.New(server.Config{Addr: c.Addr, DrainTimeout: c.DrainTimeout, LoRARoot: c.LoraRoot, OpenMetrics: c.OpenMetrics}, server.Deps{Engine: engine, Jobs: jobs, Registry: registry, Store: store, Pool: pool,
		Slots: c.AdapterSlots, Basis: l.model.Basis, Tokenizer: l.tokenizer, Template: l.template, Metrics: metrics, OpenAPI: openAPI, Log: log,
		Model: server.ModelInfo{Name: l.name, Created: time.Now(), Version: version, Backend: info.Backend, Device: info.Device, Weights: c.Weights,
			Defaults: samplingDefaults(l.generation)}})
	if err != nil {
		return err
	}
	listener, err := s.Listen(ctx)
	if err != nil {
		return err
	}
	log.Info("serving", "address", "http://"+listener.Addr().String(), "model", l.name)
	c.hint(listener.Addr().String())

	// The parts stop in this order: HTTP drains, then training is checkpointed, then the engine ends.
	run, stopParts := context.WithCancel(context.WithoutCancel(ctx))
	defer stopParts()
	var g errgroup.Group
	part := func(ctx context.Context, name string, f func(context.Context) error) {
		g.Go(func() error {
			err := f(ctx)
			if err != nil && !errors.Is(err, context.Canceled) {
				return fmt.Errorf("%s: %w", name, err)
			}
			return nil
		})
	}
	engineContext, stopEngine := context.WithCancel(context.WithoutCancel(ctx))
	defer stopEngine()
	part(engineContext, "engine", func(ctx context.Context) error {
		err := engine.Run(ctx)
		if err != nil && !errors.Is(err, context.Canceled) {
			stopParts()
		}
		return err
	})
	part(run, "registry", registry.Run)
	part(run, "jobs", func(ctx context.Context) error {
		defer stopEngine() // the last checkpoint has been taken
		return jobs.Run(ctx)
	})
	engine.SetBackground(jobs)
	serving, stopServing := context.WithCancel(ctx)
	defer stopServing()
	context.AfterFunc(run, stopServing)
	err = s.Run(serving, listener)
	stopParts()
	return errors.Join(err, g.Wait())
}

// hint prints what to try next.
func (c *serveCmd) hint(addr string) {
	fmt.Printf(`
Try, in another terminal:

  curl http://%[1]s/v1/chat/completions -H 'Content-Type: application/json' \
    -d '{"model": "%[2]s", "messages": [{"role": "user", "content": "What is a fox?"}]}'

  bin/bhive tune examples/pirate.jsonl --name pirate --watch

  bin/bhive chat -m pirate "What is a fox?"

`, addr, modelName(c.Model))
}
