package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"sync"
	"testing"
	"time"

	"bhive/adapters"
	"bhive/adapters/local"
	"bhive/finetune"
	"bhive/infer"
	"bhive/infer/checkpoint"
	"bhive/infer/demo"
	"bhive/kernels"
	"bhive/kernels/cpu"
)

// hive is a whole bhive, on the demo model unless a test wants another: backend, engine, pool, store. Tests share one; what they put into it they name for themselves.
type hive struct {
	deps       Deps
	stopEngine func() // and the engine's alone
	stop       func() error
}

// hiveConfig varies what a hive of a test's own is made of.
type hiveConfig struct {
	engine infer.Config
	slots  int
	base   *base                               // default: the demo model in bfloat16 on the CPU
	over   func(adapters.Store) adapters.Store // what everything uses of the store
}

// base is a model that a test opened, and closes.
type base struct {
	checkpoint *checkpoint.Checkpoint
	backend    kernels.Backend
	format     kernels.Format
	basis      func(g adapters.Geometry, hash string) *adapters.Basis
}

func openHive(dir string, c hiveConfig) (h *hive, err error) {
	var closers []func() error
	shut := func() error {
		var errs []error
		for i := len(closers) - 1; i >= 0; i-- {
			errs = append(errs, closers[i]())
		}
		return errors.Join(errs...)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, shut())
		}
	}()
	nothing := func(f func()) func() error { return func() error { f(); return nil } }
	ctx := context.Background()
	b := c.base
	if b == nil {
		b = &base{format: kernels.FormatBF16}
		if b.checkpoint, err = checkpoint.OpenFS(demo.FS()); err != nil {
			return nil, err
		}
		closers = append(closers, b.checkpoint.Close)
		if b.backend, err = cpu.Open(cpu.Config{Working: kernels.BF16}); err != nil {
			return nil, err
		}
		closers = append(closers, b.backend.Close)
	}
	be := b.backend
	tok, template, err := infer.LoadText(b.checkpoint, nil)
	if err != nil {
		return nil, err
	}
	hash, shape := infer.BaseHash(b.checkpoint), b.checkpoint.Config()
	geometry := infer.GeometryOf(shape)
	var basis *adapters.Basis
	if b.basis != nil {
		basis = b.basis(geometry, hash)
	} else if basis, err = adapters.NewBasis(ctx, adapters.BasisConfig{Geometry: geometry, BaseHash: hash}); err != nil {
		return nil, err
	}
	model, err := infer.Load(ctx, be, b.checkpoint, basis, infer.LoadConfig{Format: b.format, BaseHash: hash})
	if err != nil {
		return nil, err
	}
	closers = append(closers, nothing(model.Close))
	files, err := local.Open(dir, local.Options{})
	if err != nil {
		return nil, err
	}
	closers = append(closers, files.Close)
	store := adapters.Store(files)
	if c.over != nil {
		store = c.over(store)
	}
	if c.slots == 0 {
		c.slots = 16
	}
	device, err := infer.NewDevice(be, be.NewStream(), c.slots)
	if err != nil {
		return nil, err
	}
	closers = append(closers, nothing(device.Close))
	var engine *infer.Engine
	pool, err := adapters.NewPool(adapters.PoolConfig{Geometry: geometry, DType: device.DType(), Slots: c.slots, DeviceBytes: 64 << 20, HostBytes: 64 << 20,
		Wake: func() { engine.Wake() }, Check: adapters.CheckVersion(basis)}, store, device)
	if err != nil {
		return nil, err
	}
	closers = append(closers, pool.Close)
	registry := adapters.NewRegistry(store, func(ch adapters.Change) {
		if ch.Kind == adapters.VersionDeleted || ch.Kind == adapters.AdapterDeleted {
			pool.Forget(ch.Tenant, ch.Name, ch.Number)
		}
	})
	registry.StageIn(pool)
	metrics := NewMetrics()
	if c.engine.KVBytes == 0 {
		c.engine.KVBytes = 32 << 20
	}
	c.engine.Observer = metrics
	if engine, err = infer.New(c.engine, model, pool, device, tok); err != nil {
		return nil, err
	}
	if err := engine.Open(); err != nil {
		return nil, err
	}
	closers = append(closers, nothing(engine.Close))

	jobs, err := finetune.New(finetune.Config{Trainer: finetune.TrainerConfig{BatchTokens: 512}, Limits: finetune.Limits{FileBytes: 4 << 20}, ProgressEvery: time.Nanosecond},
		finetune.Deps{Model: model, Registry: registry, Encoder: finetune.NewEncoder(tok, template, shape.EOS), Wake: engine.Wake})
	if err != nil {
		return nil, err
	}
	closers = append(closers, jobs.Close)
	engine.SetBackground(jobs)
	stopEngine := func() {}
	for i, part := range []func(context.Context) error{engine.Run, registry.Run, jobs.Run} { // they end in the reverse order
		run, cancel := context.WithCancel(ctx)
		if i == 0 {
			stopEngine = cancel
		}
		ended := make(chan error, 1)
		go func() { ended <- part(run) }()
		closers = append(closers, func() error {
			cancel()
			if err := <-ended; !errors.Is(err, context.Canceled) {
				return err
			}
			return nil
		})
	}

	generation := infer.DefaultParams()
	return &hive{stop: shut, stopEngine: stopEngine, deps: Deps{Engine: engine, Jobs: jobs, Registry: registry, Store: store, Pool: pool, Slots: c.slots, Basis: basis, Tokenizer: tok, Template: template,
		Metrics: metrics, Model: ModelInfo{Name: "demo", Created: time.Unix(1700000000, 0), Version: "test", Backend: be.Info().Backend, Device: be.Info().Device,
			Weights: string(b.format), Defaults: generation}}}, nil
}

var (
	common     *hive
	commonOnce sync.Once
	commonDir  string
)

func TestMain(m *testing.M) {
	code := m.Run()
	if common != nil {
		if err := common.stop(); err != nil {
			fmt.Fprintln(os.Stderr, "closing the hive:", err)
			code = 1
		}
		_ = os.RemoveAll(commonDir)
	}
	os.Exit(code)
}

// shared is the hive that most tests share.
func shared(t testing.TB) *hive {
	t.Helper()
	commonOnce.Do(func() {
		var err error
		if commonDir, err = os.MkdirTemp("", "bhive-server"); err == nil {
			common, err = openHive(commonDir, hiveConfig{})
		}
		if err != nil {
			t.Fatal(err)
		}
	})
	if common == nil {
		t.Fatal("the hive did not open")
	}
	return common
}

// ownHive is a hive for one test.
func ownHive(t testing.TB, c hiveConfig) *hive {
	t.Helper()
	return hiveAt(t, t.TempDir(), c)
}

// hiveAt is ownHive with its store in a directory.
func hiveAt(t testing.TB, dir string, c hiveConfig) *hive {
	t.Helper()
	h, err := openHive(dir, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.stop(); err != nil {
			t.Error(err)
		}
	})
	return h
}

// serve starts a server over a hive; all its traffic is held against openapi.yaml.
func (h *hive) serve(t testing.TB, change func(*Config, *Deps)) *client {
	t.Helper()
	c, d := Config{}, h.deps
	if h == common {
		d.Metrics = nil // it can be bound once only
	}
	contract, err := os.ReadFile("../openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	d.OpenAPI = contract
	if testing.Verbose() {
		d.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	if change != nil {
		change(&c, &d)
	}
	s, err := New(c, d)
	if err != nil {
		t.Fatal(err)
	}
	web := httptest.NewServer(s.Handler())
	t.Cleanup(web.Close)
	return &client{t: t, server: s, url: web.URL, http: &http.Client{Transport: validating(t)}}
}

func serve(t testing.TB) *client { return shared(t).serve(t, nil) }

// publish puts a B of random numbers into the store under a name.
func (h *hive) publish(t testing.TB, name string, rank int, seed uint64) adapters.Version {
	t.Helper()
	return h.publishFor(t, adapters.DefaultTenant, name, rank, seed)
}

func (h *hive) publishFor(t testing.TB, tenant, name string, rank int, seed uint64) adapters.Version {
	t.Helper()
	basis := h.deps.Basis
	w := adapters.NewWeights(basis.Geometry, rank, 2*float64(rank))
	random := rand.New(rand.NewPCG(seed, 7))
	for i := range w.Data {
		w.Data[i] = float32(random.NormFloat64()) * 0.2
	}
	v, err := h.deps.Registry.Save(t.Context(), tenant, adapters.Version{Name: name, BasisDigest: basis.RowsDigest(rank), BaseHash: basis.BaseHash}, w, adapters.PublishOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return v
}
