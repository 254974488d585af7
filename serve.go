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
	"sync"
	"time"

	"bhive/adapters"
	"bhive/adapters/redis"
	"bhive/finetune"
	"bhive/infer"
	"bhive/infer/tokenizer"
	"bhive/infer/toolcall"
	"bhive/server"

	"golang.org/x/sync/errgroup"
)

//go:embed openapi.yaml
var openAPI []byte

// serveCmd serves a model.
type serveCmd struct {
	modelFlags
	basisFlags
	Addr           string        `help:"Address to listen on. Without API keys (bhive keys) it must be a loopback address." default:"127.0.0.1:8080"`
	Data           string        `help:"Directory of the embedded registry: adapters, jobs, basis; default: ~/.bhive." placeholder:"DIR"`
	LoraRoot       string        `help:"Directory below which /v1/load_lora_adapter may read PEFT adapters; default: it may not." placeholder:"DIR"`
	Registry       string        `help:"Registry in place of that directory: another directory, or a Redis that servers share, as redis://HOST:PORT, rediss://… (TLS), ?master=NAME (Sentinel), ?cluster=true." placeholder:"URL"`
	ToolCallParser string        `help:"How the model writes calls of tools: ${enum}. auto looks at its chat template." enum:"auto,hermes,llama3_json,mistral,none" default:"auto"`
	Worker         string        `help:"This server's name among those that share the registry; with it, it goes on with its own jobs after a restart. Default: host name and port." placeholder:"NAME"`
	OpenMetrics    bool          `help:"Give /metrics without an API key; it names tenants and adapters."`
	DrainTimeout   time.Duration `help:"How long running requests may go on at shutdown." default:"30s" least:"0"`

	MaxSeqs      int           `help:"Sequences that run at once." default:"64" least:"1"`
	MaxTokens    int           `help:"Tokens of a step: decodes first, then chunks of prompts." default:"512" least:"1"`
	MaxContext   int           `help:"Longest prompt and text together, in tokens; default: the model's." least:"0"`
	BlockTokens  int           `help:"Tokens of a KV block." default:"16" least:"1"`
	KVMiB        int64         `name:"kv-mib" help:"Memory of the KV cache, in MiB; 0: what the device has left. Default: 0 on a GPU, 512 on the CPU." default:"-1" least:"-1"`
	Utilization  float64       `name:"gpu-memory-utilization" help:"With --kv-mib 0, the share of the device's memory that is used; the rest is for scratch and other processes." default:"0.9" above:"0" most:"1"`
	QueueLimit   int           `help:"Requests that may wait." default:"1024" least:"1"`
	PrefixCache  bool          `help:"Reuse the K and V of common prefixes." default:"true" negatable:""`
	TPOTTarget   time.Duration `name:"tpot-target" help:"Time from token to token under which training keeps 99 of 100 tokens of running requests; it takes the rest. 0: 1.25 times what a token takes without training." default:"0s" least:"0"`
	TrainSlice   time.Duration `help:"The most that a request waits for a slice of training." default:"5ms" above:"0"`
	AdapterSlots int           `help:"Adapters on the device at once." default:"256" least:"1"`
	AdapterMiB   int64         `name:"adapter-mib" aliases:"adapter-device-mib" help:"Memory for adapters on the device, in MiB. Default: a tenth of a GPU's, 1024 on the CPU." least:"0"`
	HostMiB      int64         `name:"adapter-host-mib" help:"Memory for adapters beside it, in MiB." default:"4096" least:"0"`
	TrainTokens  int           `help:"Tokens of a training micro-batch, and so of the longest example; default: 1024, or the model's context." least:"0"`
	TrainMemory  string        `help:"What training recomputes to need less memory: none, mlp or layer; auto: as little as fits." default:"auto" enum:"auto,none,mlp,layer"`

	Quota quotaFlags `embed:"" prefix:"quota-"`
}

// quotaFlags bound what one tenant takes.
type quotaFlags struct {
	Requests             int   `help:"Completions and chats of one tenant at once, on this server; default: no bound, here and below." least:"0"`
	TokensPerMinute      int64 `help:"Tokens of one tenant's prompts and texts a minute, on this server." least:"0"`
	TrainingTokensPerDay int64 `help:"Tokens that one tenant's jobs of a day may go through." least:"0"`
	Adapters             int   `help:"Adapters of one tenant." least:"0"`
	MiB                  int64 `name:"mib" help:"MiB of one tenant's adapters and files." least:"0"`
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
	if err := checkMiB(mibFlag{"kv-mib", c.KVMiB}, mibFlag{"adapter-mib", c.AdapterMiB}, mibFlag{"adapter-host-mib", c.HostMiB}, mibFlag{"quota-mib", c.Quota.MiB}); err != nil {
		return err
	}
	if c.LoraRoot != "" {
		if _, err := os.ReadDir(c.LoraRoot); err != nil {
			return fmt.Errorf("--lora-root: %w", err)
		}
	}
	name, err := c.registry()
	if err != nil {
		return err
	}
	store, err := openStore(ctx, name, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()

	// The address answers from here on: alive, and not ready before the model is loaded.
	config := server.Config{Addr: c.Addr, DrainTimeout: c.DrainTimeout, LoRARoot: c.LoraRoot, OpenMetrics: c.OpenMetrics, Quotas: server.Quotas{Requests: c.Quota.Requests,
		TokensPerMinute: c.Quota.TokensPerMinute, TrainingTokensPerDay: c.Quota.TrainingTokensPerDay, Adapters: c.Quota.Adapters, Bytes: c.Quota.MiB << 20}}
	front, err := server.NewFront(config, store, log)
	if err != nil {
		return err
	}
	listener, err := front.Listen(ctx)
	if errors.Is(err, server.ErrNoKeys) {
		if redis.IsURL(name) { // which may hold a password
			name = "redis://…"
		}
		return fmt.Errorf("%w; make one with: bhive keys create --registry %s --tenant default --role admin", err, name)
	}
	if err != nil {
		return err
	}
	log.Info("loading", "address", "http://"+listener.Addr().String(), "model", modelName(c.Model))
	serving, stopServing := context.WithCancel(ctx)
	served := make(chan error, 1)
	go func() {
		served <- front.Run(serving, listener)
		stopServing()
	}()
	// Whatever ends this, nobody is served by what is closed.
	drain := sync.OnceValue(func() error {
		stopServing()
		return <-served
	})
	defer func() { err = errors.Join(err, drain()) }()
	err = c.serve(serving, log, store, config, front, listener.Addr().String(), drain)
	if ctx.Err() != nil && errors.Is(err, context.Canceled) { // asked to end while it was loading
		return nil
	}
	return err
}

// serve loads the model, lets front serve it until ctx ends, and ends everything when drain has returned.
func (c *serveCmd) serve(ctx context.Context, log *slog.Logger, store adapters.Store, config server.Config, front *server.Front, address string, drain func() error) (err error) {
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
	defer device.Close()
	memory := c.memory(l.backend.Info())
	if err := device.Reserve(memory.adapters, c.HostMiB<<20); err != nil {
		return fmt.Errorf("%w; see --adapter-mib and --adapter-host-mib", err)
	}
	pool, err := adapters.NewPool(adapters.PoolConfig{Geometry: l.model.Geometry, DType: device.DType(), Slots: c.AdapterSlots, DeviceBytes: memory.inUse,
		HostBytes: c.HostMiB << 20, Wake: func() { engine.Wake() }, Check: adapters.CheckVersion(l.model.Basis)}, store, device)
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, pool.Close())
		device.Close()
		l.backend.FreeStream(stream)
	}()
	registry := adapters.NewRegistry(store, func(ch adapters.Change) {
		if ch.Kind == adapters.VersionDeleted || ch.Kind == adapters.AdapterDeleted {
			pool.Forget(ch.Tenant, ch.Name, ch.Number)
		}
	})
	registry.StageIn(pool)
	metrics := server.NewMetrics()
	engine, err = infer.New(infer.Config{MaxSeqs: c.MaxSeqs, MaxTokens: c.MaxTokens, MaxContext: c.MaxContext, BlockTokens: c.BlockTokens, KVBytes: memory.kv, MemoryUtilization: memory.utilization, Reserve: memory.later,
		QueueLimit: c.QueueLimit, NoPrefixCache: !c.PrefixCache, TPOTTarget: c.TPOTTarget, TrainSlice: c.TrainSlice, Observer: metrics,
		Graphs: !l.backend.Info().CopyInPlace, Overlap: !l.backend.Info().CopyInPlace}, l.model, pool, device, l.tokenizer)
	if err != nil {
		return err
	}
	if err := engine.Open(); err != nil {
		if errors.Is(err, infer.ErrNoMemory) {
			err = fmt.Errorf("%w; see --kv-mib, --gpu-memory-utilization and --adapter-mib", err)
		}
		return err
	}
	defer engine.Close()
	log.Info("memory", "kv_mib", engine.Config().KVBytes>>20, "kv_tokens", engine.Config().KVBlocks*engine.Config().BlockTokens, "adapter_mib", memory.inUse>>20,
		"free_mib", l.backend.Info().MemoryFree>>20)
	jobs, err := finetune.New(finetune.Config{Worker: c.worker(), Trainer: finetune.TrainerConfig{BatchTokens: c.TrainTokens, MemoryPlan: c.TrainMemory}},
		finetune.Deps{Model: l.model, Registry: registry, Encoder: finetune.NewEncoder(l.tokenizer, l.template, engine.Config().EOS), Wake: engine.Wake, Log: log})
	if err != nil {
		return err
	}
	defer jobs.Close() // behind the engine's end: units that it left on the device end before the model is freed
	info := l.backend.Info()
	calls := toolcall.Find(l.template)
	if c.ToolCallParser != "auto" {
		if calls, err = toolcall.ParseFormat(c.ToolCallParser); err != nil {
			return err
		}
	}
	s, err := server.New(config, server.Deps{Engine: engine, Jobs: jobs, Registry: registry, Store: store, Pool: pool,
		Slots: c.AdapterSlots, Basis: l.model.Basis, Tokenizer: l.tokenizer, Template: l.template, ToolCalls: calls, Metrics: metrics, OpenAPI: openAPI, Log: log,
		Model: server.ModelInfo{Name: l.name, Created: time.Now(), Version: version, Backend: info.Backend, Device: info.Device, Weights: c.Weights,
			Defaults: samplingDefaults(l.generation)}})
	if err != nil {
		return err
	}
	// The parts stop in this order: HTTP drains, then training is checkpointed, then the engine ends.
	run, stopParts := context.WithCancel(context.WithoutCancel(ctx))
	defer stopParts()
	var g errgroup.Group
	part := func(ctx context.Context, name string, f func(context.Context) error) {
		g.Go(func() error {
			err := f(ctx)
			if err == nil || errors.Is(err, context.Canceled) {
				return nil
			}
			stopParts() // the others are no server without it
			return fmt.Errorf("%s: %w", name, err)
		})
	}
	engineContext, stopEngine := context.WithCancel(context.WithoutCancel(ctx))
	defer stopEngine()
	part(engineContext, "engine", engine.Run)
	part(run, "registry", registry.Run)
	part(run, "jobs", func(ctx context.Context) error {
		defer stopEngine() // the last checkpoint has been taken
		return jobs.Run(ctx)
	})
	engine.SetBackground(jobs)
	front.Serve(s)
	log.Info("serving", "address", "http://"+address, "model", l.name)
	fmt.Print(hint(address, l.name))
	select {
	case <-ctx.Done():
	case <-run.Done(): // a part failed
	}
	err = drain()
	stopParts()
	return errors.Join(err, g.Wait())
}

// hint is what to try next.
func hint(addr, model string) string {
	server := ""
	if addr != "127.0.0.1:8080" { // where the verbs look for one
		server = " --server http://" + addr
	}
	return fmt.Sprintf(`
Try, in another terminal:

  curl http://%[1]s/v1/chat/completions -H 'Content-Type: application/json' \
    -d '{"model": "%[2]s", "messages": [{"role": "user", "content": "What is a fox?"}]}'

  bin/bhive tune%[3]s examples/pirate.jsonl --name pirate --watch

  bin/bhive chat%[3]s -m pirate "What is a fox?"

`, addr, model, server)
}
