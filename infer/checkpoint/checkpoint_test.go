package checkpoint

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"bhive/adapters/safetensors"
	"bhive/infer/demo"

	"github.com/google/go-cmp/cmp"
)

func tinyConfig(f Family, rope Rope) Config {
	rope.Dim = 16
	return Config{
		Family: f, Layers: 3, Hidden: 64, FeedForward: 160, Heads: 4, KVHeads: 2, HeadDim: 16, Vocab: 512, NormEps: 1e-6,
		MaxPositions: 256, Rope: rope, BOS: 1, EOS: []int{2}, Pad: -1, TorchDType: "bfloat16",
	}
}

func TestTiny(t *testing.T) {
	plain := Rope{Type: RopeDefault, Theta: 10000}
	for name, want := range map[string]Config{
		"llama":             tinyConfig(Llama, plain),
		"llama-bias":        tinyConfig(Llama, plain),
		"llama-tied-linear": tinyConfig(Llama, Rope{Type: RopeLinear, Theta: 10000, Factor: 4}),
		"llama3-rope":       tinyConfig(Llama, Rope{Type: RopeLlama3, Theta: 500000, Factor: 8, LowFreqFactor: 1, HighFreqFactor: 4, OriginalMaxPositions: 64}),
		"mistral-window":    tinyConfig(Mistral, plain),
		"qwen2-yarn":        tinyConfig(Qwen2, Rope{Type: RopeYarn, Theta: 10000, Factor: 4, OriginalMaxPositions: 64, BetaFast: 32, BetaSlow: 1}),
		"qwen3":             tinyConfig(Qwen3, Rope{Type: RopeDefault, Theta: 1e6}),
	} {
		t.Run(name, func(t *testing.T) {
			switch name {
			case "llama-bias":
				want.AttentionBias, want.OutputBias, want.MLPBias = true, true, true
			case "llama-tied-linear":
				want.TieEmbeddings = true
			case "mistral-window":
				want.HeadDim, want.Rope.Dim, want.SlidingWindow = 32, 32, 16
			case "qwen2-yarn":
				want.TieEmbeddings, want.AttentionBias = true, true
			case "qwen3":
				want.TieEmbeddings, want.QKNorm, want.HeadDim, want.Rope.Dim = true, true, 32, 32
			}
			c, err := Open(filepath.Join("../testdata/tiny", name))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if d := cmp.Diff(want, c.Config()); d != "" {
				t.Errorf("config (-want +got):\n%s", d)
			}
			if u := c.Unused(); len(u) > 0 {
				t.Errorf("unused tensors: %v", u)
			}
			names := want.TensorNames()
			slices.Sort(names)
			if d := cmp.Diff(names, c.Names()); d != "" {
				t.Errorf("names (-want +got):\n%s", d)
			}
			for _, n := range names {
				x, err := c.Tensor(n)
				if err != nil {
					t.Fatal(err)
				}
				if !slices.Equal(x.Shape, want.TensorShape(n)) || x.DType != BF16 {
					t.Errorf("%s is %s%v", n, x.DType, x.Shape)
				}
			}
		})
	}
}

func TestDemo(t *testing.T) {
	c, err := OpenFS(demo.FS())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if cfg := c.Config(); !slices.Equal(cfg.EOS, []int{2, 0}) || cfg.Pad != 3 || cfg.BOS != 0 || !cfg.TieEmbeddings {
		t.Errorf("config %+v", cfg)
	}
	g := c.Generation()
	if g.Temperature == nil || *g.Temperature != 0.7 || g.TopK != nil || g.DoSample == nil || !*g.DoSample {
		t.Errorf("generation %+v", g)
	}
	if s, err := c.TokenizerConfig(); err != nil || !strings.Contains(string(s), "<|im_start|>") {
		t.Errorf("tokenizer_config.json %q, %v", s, err)
	}
	if b, err := c.TokenizerJSON(); err != nil || len(b) < 1000 {
		t.Errorf("tokenizer.json: %d bytes, %v", len(b), err)
	}
	if _, err := c.Tensor("lm_head.weight"); !errors.Is(err, ErrNoTensor) {
		t.Errorf("tied head: %v", err)
	}
	for range 2 {
		if err := c.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
}

func TestSmolLM2(t *testing.T) {
	path, err := Resolve("smollm2", []string{"../../models"})
	if err != nil {
		t.Skip(err)
	}
	c, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	want := Config{
		Family: Llama, Layers: 30, Hidden: 576, FeedForward: 1536, Heads: 9, KVHeads: 3, HeadDim: 64, Vocab: 49152, NormEps: 1e-5, TieEmbeddings: true,
		MaxPositions: 8192, Rope: Rope{Type: RopeDefault, Dim: 64, Theta: 100000}, BOS: 1, EOS: []int{2}, Pad: 2,
	}
	got := c.Config()
	got.NormEps = float64(float32(math.Round(got.NormEps*1e9) / 1e9))
	want.NormEps = float64(float32(want.NormEps))
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("config (-want +got):\n%s", d)
	}
	if u := c.Unused(); len(u) > 0 {
		t.Errorf("unused tensors: %v", u)
	}
	if s, ok := c.GGUFMeta().Strings("tokenizer.ggml.tokens"); !ok || len(s) != 49152 {
		t.Errorf("%d tokens", len(s))
	}
	if s, _ := c.GGUFMeta().String("tokenizer.ggml.pre"); s != "smollm" {
		t.Errorf("tokenizer.ggml.pre = %q", s)
	}
	for _, n := range want.TensorNames() {
		x, err := c.Tensor(n)
		if err != nil {
			t.Fatal(err)
		}
		row := make([]float32, x.Cols())
		x.Row(x.Rows()-1, row)
		for _, v := range row {
			if math.IsNaN(float64(v)) || math.Abs(float64(v)) > 1000 {
				t.Fatalf("%s holds %v", n, v)
			}
		}
	}
}

func TestQuants(t *testing.T) {
	file, err := os.Open("testdata/quants.safetensors")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	st, err := file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	f, err := safetensors.Open(file, st.Size())
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range []DType{F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K, Q6_K} {
		raw, err := f.Tensor(string(d) + ".raw")
		if err != nil {
			t.Fatal(err)
		}
		values, err := f.Tensor(string(d) + ".values")
		if err != nil {
			t.Fatal(err)
		}
		n := len(values.Data) / 4
		x := Tensor{Name: string(d), Shape: []int{raw.Shape[0], n / raw.Shape[0]}, DType: d, data: raw.Data}
		got, want := x.Float32s(), make([]float32, n)
		dequantize(F32, values.Data, want)
		half := make([]uint16, x.Cols())
		for i := range want {
			if math.Abs(float64(got[i]-want[i])) > 1e-6*math.Abs(float64(want[i])) {
				t.Errorf("%s: value %d = %v, want %v", d, i, got[i], want[i])
				break
			}
			if i%x.Cols() == 0 {
				x.BF16Row(i/x.Cols(), half)
			}
			if b := half[i%x.Cols()]; b != floatToBF16(got[i]) {
				t.Errorf("%s: bfloat16 of value %d = %#x, want %#x", d, i, b, floatToBF16(got[i]))
				break
			}
		}
	}
}

func TestResolve(t *testing.T) {
	dir := t.TempDir()
	if p, err := Resolve("demo", nil); err != nil || p != Demo {
		t.Errorf("demo: %q, %v", p, err)
	}
	if _, err := Resolve("smollm2", []string{dir}); !errors.Is(err, ErrUnknownModel) || !strings.Contains(err.Error(), "make smollm2") {
		t.Errorf("smollm2: %v", err)
	}
	if p, err := Resolve(dir, nil); err != nil || p != dir {
		t.Errorf("path: %q, %v", p, err)
	}
	if _, err := Resolve(filepath.Join(dir, "none"), nil); !errors.Is(err, ErrUnknownModel) {
		t.Errorf("absent: %v", err)
	}
}
