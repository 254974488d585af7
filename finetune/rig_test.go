package finetune

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"testing"

	"bhive/adapters"
	"bhive/adapters/safetensors"
	"bhive/infer"
	"bhive/infer/chat"
	"bhive/infer/checkpoint"
	"bhive/infer/demo"
	"bhive/infer/tokenizer"
	"bhive/kernels"
	"bhive/kernels/cpu"
	"bhive/kernels/cuda"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	on        = flag.String("device", "cpu", "device that the package's tests run on: cpu or cuda")
	precision = flag.String("precision", "float32", "what the device works in: float32, or with cuda bfloat16 too")
)

func rounds() bool { return *precision == "bfloat16" }

// openDevice is the device under test; on the CPU with two threads.
func openDevice(t testing.TB, invariant bool) kernels.Backend {
	t.Helper()
	working := kernels.F32
	if rounds() {
		working = kernels.BF16
	}
	var be kernels.Backend
	var err error
	switch *on {
	case "cuda":
		be, err = cuda.Open(cuda.Config{Working: working, BatchInvariant: invariant})
	default:
		be, err = cpu.Open(cpu.Config{Threads: 2, Working: working})
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := be.Close(); err != nil {
			t.Error(err)
		}
	})
	return be
}

// format of the base's weights on the device under test.
func format() kernels.Format {
	if rounds() {
		return kernels.FormatBF16
	}
	return kernels.FormatF32
}

func openDemo(t testing.TB) *checkpoint.Checkpoint {
	t.Helper()
	cp, err := checkpoint.OpenFS(demo.FS())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cp.Close() })
	return cp
}

func load(t testing.TB, be kernels.Backend, cp *checkpoint.Checkpoint, basis *adapters.Basis, format kernels.Format) *infer.Model {
	t.Helper()
	c := infer.LoadConfig{Format: format}
	if basis != nil {
		c.BaseHash = basis.BaseHash
	}
	m, err := infer.Load(context.Background(), be, cp, basis, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	return m
}

func demoModel(t testing.TB, rows int) *infer.Model {
	t.Helper()
	cp := openDemo(t)
	hash := infer.BaseHash(cp)
	basis, err := adapters.NewBasis(context.Background(), adapters.BasisConfig{Method: adapters.Orthonormal, R: rows, Geometry: geometry(cp.Config()), BaseHash: hash})
	if err != nil {
		t.Fatal(err)
	}
	return load(t, openDevice(t, true), cp, basis, format())
}

func geometry(c checkpoint.Config) adapters.Geometry {
	return adapters.Geometry{Layers: c.Layers, Hidden: c.Hidden, QDim: c.Heads * c.HeadDim, KVDim: c.KVHeads * c.HeadDim, FeedForward: c.FeedForward}
}

func demoFile(t testing.TB, name string) []byte {
	t.Helper()
	data, err := fs.ReadFile(demo.FS(), name)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func demoTokenizer(t testing.TB) *tokenizer.Tokenizer {
	t.Helper()
	tok, err := tokenizer.Parse(demoFile(t, "tokenizer.json"))
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

func demoEncoder(t testing.TB) Encoder {
	t.Helper()
	tmpl, err := chat.FromHF(demoFile(t, "tokenizer_config.json"), nil)
	if err != nil {
		t.Fatal(err)
	}
	return NewEncoder(demoTokenizer(t), tmpl, openDemo(t).Config().EOS)
}

// goldenRun is one run of train.json.
type goldenRun struct {
	Basis        string
	Rank         int
	Alpha, LR    float64
	LRs          []float64
	Steps        int
	Correction   bool
	WeightDecay  float64  `json:"weight_decay"`
	MaxGradNorm  *float64 `json:"max_grad_norm"`
	Betas        [2]float64
	Eps          float64
	Batch        int
	MicroBatches int `json:"micro_batches"`
	Losses       []float64
	GradNorms    []float64          `json:"grad_norms"`
	FinalBNorms  map[string]float64 `json:"final_B_norms"`
}

func readJSON(t testing.TB, path string, to any) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, to); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

// goldenExamples reads train_examples.json, whose labels are aligned with the ids.
func goldenExamples(t testing.TB, dir string) []Example {
	t.Helper()
	var list []struct{ IDs, Labels []int }
	readJSON(t, filepath.Join(dir, "train_examples.json"), &list)
	var out []Example
	for _, e := range list {
		trained := make([]bool, len(e.IDs))
		for i, l := range e.Labels {
			trained[i] = l >= 0
		}
		out = append(out, newExample(e.IDs, trained))
	}
	return out
}

func openTensors(t testing.TB, path string) *safetensors.File {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := safetensors.Open(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func tensorBytes(t testing.TB, f *safetensors.File, name string) []byte {
	t.Helper()
	x, err := f.Tensor(name)
	if err != nil {
		t.Fatal(err)
	}
	info, _ := f.Info(name)
	out := make([]byte, info.Size)
	if x.Data != nil {
		return x.Data
	}
	if _, err := x.From.Read(out); err != nil {
		t.Fatal(err)
	}
	return out
}

// goldenBasis is the basis of a golden run: its A's, imported.
func goldenBasis(t testing.TB, f *safetensors.File, g adapters.Geometry, rank int, hash string) *adapters.Basis {
	t.Helper()
	p := &adapters.PEFT{Geometry: g, Rank: rank, Alpha: 16, Scaling: 2}
	for l := range g.Layers {
		for proj := range adapters.NumProjs {
			raw := tensorBytes(t, f, fmt.Sprintf("layers.%d.%v.lora_A", l, proj.Site()))
			m := adapters.PEFTModule{Layer: l, Proj: proj, Rank: rank, Scaling: 2, AExact: true, B: make([]float32, g.Out(proj)*rank)}
			for i := 0; i < len(raw); i += 2 {
				bits := uint16(raw[i]) | uint16(raw[i+1])<<8
				m.ABits = append(m.ABits, bits)
				m.A = append(m.A, math.Float32frombits(uint32(bits)<<16))
			}
			p.Modules = append(p.Modules, m)
		}
	}
	b, err := adapters.ImportBasis(p, hash)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (g goldenRun) options(examples []Example) LaneOptions {
	warmup := 0
	kind := ScheduleConstant
	if g.LRs[0] < g.LR {
		kind = ScheduleCosine
		for g.LRs[warmup] < g.LR {
			warmup++
		}
		warmup++
	}
	o := LaneOptions{Rank: g.Rank, Alpha: g.Alpha, Train: examples, Batching: Batching{Examples: g.Batch / g.MicroBatches, Batches: g.MicroBatches},
		Schedule: Schedule{Kind: kind, Rate: g.LR, Warmup: warmup, Steps: g.Steps}, Beta1: g.Betas[0], Beta2: g.Betas[1], Epsilon: g.Eps,
		Decay: g.WeightDecay, Correction: g.Correction, order: &Order{n: len(examples), fixed: true}}
	if g.MaxGradNorm != nil {
		o.Clip = *g.MaxGradNorm
	}
	return o
}

// runUnits runs a trainer until nothing is left to do.
func runUnits(t testing.TB, tr *Trainer) {
	t.Helper()
	for {
		more, err := tr.Unit()
		if err != nil {
			t.Fatal(err)
		}
		if !more {
			return
		}
	}
}

func newTrainer(t testing.TB, m *infer.Model, c TrainerConfig) *Trainer {
	t.Helper()
	tr, err := NewTrainer(m, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tr.Close)
	return tr
}

func addLane(t testing.TB, tr *Trainer, o LaneOptions) *Lane {
	t.Helper()
	l, err := tr.Add(o)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// ggufEncoder is the encoder of a GGUF's own tokenizer and template.
func ggufEncoder(cp *checkpoint.Checkpoint) (Encoder, error) {
	m := cp.GGUFMeta()
	var v tokenizer.GGUFVocab
	v.Model, _ = m.String("tokenizer.ggml.model")
	v.Pre, _ = m.String("tokenizer.ggml.pre")
	v.Tokens, _ = m.Strings("tokenizer.ggml.tokens")
	v.Merges, _ = m.Strings("tokenizer.ggml.merges")
	types, _ := m.Ints("tokenizer.ggml.token_type")
	for _, t := range types {
		v.TokenTypes = append(v.TokenTypes, int32(t))
	}
	tok, err := tokenizer.FromGGUF(v)
	if err != nil {
		return nil, err
	}
	source, _ := m.String("tokenizer.chat_template")
	tmpl, err := chat.Parse(source, chat.Options{BOS: "<|im_start|>", EOS: "<|im_end|>"})
	if err != nil {
		return nil, err
	}
	return NewEncoder(tok, tmpl, cp.Config().EOS), nil
}
