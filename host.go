package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"bhive/adapters"
	"bhive/adapters/local"
	"bhive/adapters/redis"
	"bhive/infer"
	"bhive/infer/chat"
	"bhive/infer/checkpoint"
	"bhive/infer/demo"
	"bhive/infer/tokenizer"
	"bhive/kernels"
	"bhive/kernels/cuda"

	goredis "github.com/redis/go-redis/v9"
)

// modelFlags say what is loaded onto which device.
type modelFlags struct {
	Model     string   `short:"m" help:"demo (embedded), smollm2 (after make smollm2), a Hugging Face directory, a GGUF file, or random:SHAPE, weights from a seed for measuring (llama-3-8b, llama-3.2-1b, llama-3-70b, smollm2-135m, tiny; cut to the layers that fit)." default:"demo"`
	ModelDirs []string `help:"Where models known by name lie." default:"models" placeholder:"DIR"`
	Device    string   `help:"Where to run: ${enum}. auto takes a GPU where one can be used." enum:"auto,cuda,cpu" default:"auto"`
	Weights   string   `help:"How the base's weights are kept: ${enum}. With float32 everything is." enum:"bfloat16,float32,int8" default:"bfloat16"`
	Threads   int      `help:"CPU threads; default: all." least:"0"`

	ChatTemplate string `help:"Chat template (Jinja) in place of the model's own." placeholder:"FILE"`

	BatchInvariant bool `help:"On a GPU, give a token the same bits in every batch, at some cost; the CPU always does."`

	GPU     func(*cuda.Config) `kong:"-"` // further settings of a GPU
	Backend kernels.Backend    `kong:"-"` // an open device in place of one of its own
}

// basisFlags say which A's a base gets the first time that it is served from a registry.
type basisFlags struct {
	Basis       adapters.Method `help:"Rows of the shared A's: ${enum}." enum:"orthonormal,kaiming,activations,import" default:"orthonormal"`
	BasisFrom   string          `help:"With --basis import: PEFT adapter whose lora_A's are taken; q, k and v must share one, gate and up too." placeholder:"DIR"`
	BasisSeed   uint64          `help:"Seed of the basis." default:"0"`
	BasisRows   int             `help:"Rows of each A: the highest rank of an adapter." default:"64" least:"1"`
	Calibration string          `help:"Text file to measure an activations basis on, paragraphs apart by empty lines; default: a built-in text." placeholder:"FILE"`
}

// loaded is a model ready to run, with its text side.
type loaded struct {
	backend    kernels.Backend
	lent       bool // the backend outlives the model
	model      *infer.Model
	tokenizer  *tokenizer.Tokenizer
	template   *chat.Template
	generation checkpoint.Generation
	name       string
}

func (l *loaded) close() {
	if l.model != nil {
		l.model.Close()
	}
	if l.backend != nil && !l.lent {
		l.backend.Close()
	}
}

// basisOf gives the basis for a base; load makes a model without one, where it must be measured.
type basisOf func(ctx context.Context, baseHash string, geometry adapters.Geometry, plain func() (*infer.Model, error)) (*adapters.Basis, error)

// load opens the device and the checkpoint and puts the model on it.
func (f *modelFlags) load(ctx context.Context, log *slog.Logger, basis basisOf, tokens func(*tokenizer.Tokenizer)) (*loaded, error) {
	if name, ok := strings.CutPrefix(f.Model, "random:"); ok {
		return f.loadRandom(ctx, log, name, basis, tokens)
	}
	path, err := checkpoint.Resolve(f.Model, f.ModelDirs)
	if err != nil {
		return nil, err
	}
	var cp *checkpoint.Checkpoint
	if path == checkpoint.Demo {
		cp, err = checkpoint.OpenFS(demo.FS())
	} else {
		cp, err = checkpoint.Open(path)
	}
	if err != nil {
		return nil, err
	}
	defer cp.Close()
	l := &loaded{generation: cp.Generation(), name: modelName(f.Model)}
	var template []byte
	if f.ChatTemplate != "" {
		if template, err = os.ReadFile(f.ChatTemplate); err != nil {
			return nil, fmt.Errorf("the chat template: %w", err)
		}
	}
	if l.tokenizer, l.template, err = infer.LoadText(cp, template); err != nil {
		return nil, err
	}
	if tokens != nil {
		tokens(l.tokenizer)
	}
	if l.backend, l.lent, err = openDevice(f, log); err != nil {
		return nil, err
	}
	hash := infer.BaseHash(cp)
	return f.onDevice(ctx, log, l, hash, cp.Config(), basis, func(b *adapters.Basis) (*infer.Model, error) {
		return infer.Load(ctx, l.backend, cp, b, infer.LoadConfig{Format: f.format(), BaseHash: hash})
	})
}

// onDevice makes the basis and then the model with it. On an error l is closed.
func (f *modelFlags) onDevice(ctx context.Context, log *slog.Logger, l *loaded, hash string, shape checkpoint.Config, basis basisOf,
	load func(*adapters.Basis) (*infer.Model, error)) (*loaded, error) {
	start := time.Now()
	b, err := basis(ctx, hash, infer.GeometryOf(shape), func() (*infer.Model, error) { return load(nil) })
	if err == nil {
		l.model, err = load(b)
	}
	if err != nil {
		l.close()
		return nil, fmt.Errorf("loading %s: %w", f.Model, err)
	}
	log.Info("model loaded", "model", l.name, "device", l.backend.Info().Device, "weights", f.Weights, "seconds", time.Since(start).Seconds())
	return l, nil
}

// format is how base weights are kept.
func (f *modelFlags) format() kernels.Format {
	return map[string]kernels.Format{"bfloat16": kernels.FormatBF16, "float32": kernels.FormatF32, "int8": kernels.FormatInt8}[f.Weights]
}

// modelName is what clients call a model: its name, or the last part of its path.
func modelName(model string) string {
	name := filepath.Base(strings.TrimRight(model, "/"))
	return strings.TrimSuffix(name, ".gguf")
}

// storedBasis takes a base's basis from the registry, or makes it by the flags and records it there.
func storedBasis(store adapters.Store, f basisFlags, log *slog.Logger, tokens func(string) []int) basisOf {
	return func(ctx context.Context, hash string, g adapters.Geometry, plain func() (*infer.Model, error)) (*adapters.Basis, error) {
		record, err := store.GetBasis(ctx, hash)
		if err == nil {
			return openBasis(ctx, store, record)
		}
		if !errors.Is(err, adapters.ErrNotFound) {
			return nil, err
		}
		b, err := f.make(ctx, hash, g, plain, tokens)
		if err != nil {
			return nil, err
		}
		var file bytes.Buffer
		if err := b.Save(&file); err != nil {
			return nil, err
		}
		blob, err := store.PutBlob(ctx, adapters.DefaultTenant, &file)
		if err != nil {
			return nil, fmt.Errorf("storing the basis: %w", err)
		}
		record, err = store.PutBasis(ctx, adapters.BasisRecord{BaseHash: hash, Fingerprint: b.Fingerprint(), Method: b.Method, Seed: b.Seed, R: b.R,
			SHA256: blob.SHA256, Bytes: blob.Bytes}, "")
		if err != nil {
			return nil, fmt.Errorf("recording the basis: %w", err)
		}
		if record.Fingerprint != b.Fingerprint() { // another server was first
			return openBasis(ctx, store, record)
		}
		log.Info("basis made", "method", b.Method, "rows", b.R, "fingerprint", b.Fingerprint())
		return b, nil
	}
}

func openBasis(ctx context.Context, store adapters.Store, record adapters.BasisRecord) (*adapters.Basis, error) {
	blob, err := store.OpenBlob(ctx, adapters.DefaultTenant, record.SHA256)
	if err != nil {
		return nil, fmt.Errorf("opening the stored basis: %w", err)
	}
	defer blob.Close()
	b, err := adapters.LoadBasis(blob, blob.Size())
	if err != nil {
		return nil, fmt.Errorf("the stored basis: %w", err)
	}
	return b, nil
}

// make generates the basis that the flags describe.
func (f basisFlags) make(ctx context.Context, hash string, g adapters.Geometry, plain func() (*infer.Model, error), tokens func(string) []int) (*adapters.Basis, error) {
	if f.Basis == adapters.Import {
		if f.BasisFrom == "" {
			return nil, errors.New("--basis import needs --basis-from")
		}
		p, err := adapters.ReadPEFT(os.DirFS(f.BasisFrom), g)
		if err != nil {
			return nil, fmt.Errorf("the adapter in %s: %w", f.BasisFrom, err)
		}
		return adapters.ImportBasis(p, hash)
	}
	c := adapters.BasisConfig{Method: f.Basis, Seed: f.BasisSeed, R: f.BasisRows, Geometry: g, BaseHash: hash}
	if f.Basis == adapters.Activations {
		texts := infer.CalibrationTexts()
		if f.Calibration != "" {
			b, err := os.ReadFile(f.Calibration)
			if err != nil {
				return nil, fmt.Errorf("reading the calibration text: %w", err)
			}
			texts = strings.Split(string(b), "\n\n")
		}
		var sequences [][]int32
		for _, text := range texts {
			var ids []int32
			for _, id := range tokens(text) {
				ids = append(ids, int32(id))
			}
			sequences = append(sequences, ids)
		}
		m, err := plain()
		if err != nil {
			return nil, err
		}
		defer m.Close()
		if c.Cov, err = infer.Calibrate(ctx, m, sequences, infer.CalibrateConfig{}); err != nil {
			return nil, err
		}
	}
	return adapters.NewBasis(ctx, c)
}

// openStore opens the registry that a name means: a redis:// URL, or a directory.
func openStore(ctx context.Context, name string, log *slog.Logger) (adapters.Store, error) {
	if redis.IsURL(name) {
		goredis.SetLogger(redisLog{log})
		return redis.Open(ctx, name, redis.Options{Log: log})
	}
	if err := os.MkdirAll(name, 0o750); err != nil {
		return nil, fmt.Errorf("making the data directory: %w", err)
	}
	return local.Open(name, local.Options{})
}

// redisLog takes what the Redis client says of its connections; the errors of calls say it too.
type redisLog struct{ log *slog.Logger }

// Printf logs.
func (l redisLog) Printf(ctx context.Context, format string, a ...any) {
	l.log.DebugContext(ctx, "redis client: "+fmt.Sprintf(format, a...))
}
