package checkpoint

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"testing"
)

// rope.json is made by rope.py beside it. The power is computed by another library there: four units in the last place.
func TestInvFreq(t *testing.T) {
	data, err := os.ReadFile("testdata/rope.json")
	if err != nil {
		t.Fatal(err)
	}
	var cases []struct {
		Rope   Rope
		Inv    []float32
		Factor float32
	}
	if err := json.Unmarshal(data, &cases); err != nil {
		t.Fatal(err)
	}
	for _, c := range cases {
		if err := c.Rope.Validate(); err != nil {
			t.Error(err)
		}
		inv, factor := c.Rope.InvFreq()
		if len(inv) != len(c.Inv) || math.Abs(float64(factor-c.Factor)) > 1e-7 {
			t.Fatalf("%+v: %d frequencies, factor %v; want %d, %v", c.Rope, len(inv), factor, len(c.Inv), c.Factor)
		}
		for i, w := range c.Inv {
			if math.Abs(float64(inv[i]-w)) > 5e-7*float64(w) {
				t.Errorf("%+v: frequency %d = %v, want %v", c.Rope, i, inv[i], w)
			}
		}
	}
}

// A GGUF holds llama3's scaling as divisors of the plain frequencies.
func TestFreqFactors(t *testing.T) {
	r := Rope{Type: RopeLlama3, Dim: 64, Theta: 500000, Factor: 8, LowFreqFactor: 1, HighFreqFactor: 4, OriginalMaxPositions: 8192}
	want, _ := r.InvFreq()
	plain, _ := Rope{Type: RopeDefault, Dim: 64, Theta: 500000}.InvFreq()
	f := Rope{Type: RopeLlama3, Dim: 64, Theta: 500000}
	for i := range want {
		f.FreqFactors = append(f.FreqFactors, plain[i]/want[i])
	}
	got, _ := f.InvFreq()
	for i := range want {
		if math.Abs(float64(got[i]-want[i])) > 3e-7*float64(want[i]) {
			t.Errorf("frequency %d = %v, want %v", i, got[i], want[i])
		}
	}
}

// configJSON is a valid config with fields replaced or added.
func configJSON(model string, fields string) string {
	base := map[string]any{
		"model_type": model, "num_hidden_layers": 4, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4,
		"num_key_value_heads": 2, "vocab_size": 128, "head_dim": 16,
	}
	if err := json.Unmarshal([]byte("{"+fields+"}"), &base); err != nil {
		panic(err)
	}
	out, err := json.Marshal(base)
	if err != nil {
		panic(err)
	}
	return string(out)
}

func TestConfigRefuses(t *testing.T) {
	for _, c := range []struct {
		data, want string
		kind       error
	}{
		{"{", "config.json", ErrFormat},
		{configJSON("gemma", ``), `model_type = "gemma"`, ErrUnsupported},
		{configJSON("llama", `"architectures":["LlamaForSequenceClassification"]`), "architectures", ErrUnsupported},
		{configJSON("llama", `"hidden_act":"gelu"`), `hidden_act = "gelu"`, ErrUnsupported},
		{configJSON("llama", `"quantization_config":{"quant_method":"gptq"}`), "quantization_config", ErrUnsupported},
		{configJSON("llama", `"rope_scaling":{"rope_type":"dynamic","factor":2}`), `rope_type "dynamic"`, ErrUnsupported},
		{configJSON("llama", `"rope_scaling":{"type":"linear"}`), "factor = 0", ErrFormat},
		{configJSON("llama", `"rope_scaling":{"type":"llama3","factor":8,"low_freq_factor":4,"high_freq_factor":4}`), "high_freq_factor", ErrFormat},
		{configJSON("llama", `"partial_rotary_factor":0.5`), "partial_rotary_factor", ErrUnsupported},
		{configJSON("llama", `"rope_theta":-1`), "rope_theta", ErrFormat},
		{configJSON("llama", `"num_key_value_heads":3`), "num_key_value_heads", ErrFormat},
		{configJSON("llama", `"num_hidden_layers":0`), "num_hidden_layers = 0", ErrFormat},
		{configJSON("llama", `"num_hidden_layers":1000000000`), "num_hidden_layers", ErrFormat},
		{configJSON("llama", `"hidden_size":"x"`), "hidden_size", ErrFormat},
		{configJSON("llama", `"head_dim":15`), "dimension", ErrFormat},
		{configJSON("qwen2", `"use_sliding_window":true,"layer_types":["full_attention"]`), "layer_types", ErrFormat},
	} {
		if _, err := parseConfig([]byte(c.data)); !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want one with %q", c.data, err, c.want)
		}
	}
}

func TestWindow(t *testing.T) {
	for _, c := range []struct {
		data string
		want []int
	}{
		{configJSON("llama", `"sliding_window":8`), []int{0, 0, 0, 0}},
		{configJSON("mistral", ``), []int{4096, 4096, 4096, 4096}},
		{configJSON("mistral", `"sliding_window":null`), []int{0, 0, 0, 0}},
		{configJSON("mistral", `"sliding_window":8`), []int{8, 8, 8, 8}},
		{configJSON("qwen2", `"sliding_window":8,"max_window_layers":2`), []int{0, 0, 0, 0}},
		{configJSON("qwen2", `"sliding_window":8,"use_sliding_window":true,"max_window_layers":2`), []int{0, 0, 8, 8}},
		{configJSON("qwen2", `"sliding_window":8,"use_sliding_window":true,"max_window_layers":0`), []int{8, 8, 8, 8}},
		{configJSON("qwen3", `"sliding_window":8,"use_sliding_window":true,"layer_types":["sliding_attention","full_attention","full_attention","sliding_attention"]`), []int{8, 0, 0, 8}},
	} {
		cfg, err := parseConfig([]byte(c.data))
		if err != nil {
			t.Error(err)
			continue
		}
		var got []int
		for l := range cfg.Layers {
			got = append(got, cfg.Window(l))
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: windows %v, want %v", c.data, got, c.want)
		}
	}
}

// Both spellings of the rotary embedding give one Rope.
func TestRopeForms(t *testing.T) {
	old, err := parseConfig([]byte(configJSON("llama", `"rope_theta":5e5,"rope_scaling":{"type":"yarn","factor":4,"original_max_position_embeddings":64}`)))
	if err != nil {
		t.Fatal(err)
	}
	newer, err := parseConfig([]byte(configJSON("llama", `"rope_parameters":{"rope_type":"yarn","factor":4,"original_max_position_embeddings":64,"rope_theta":5e5}`)))
	if err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(old.Rope) != fmt.Sprint(newer.Rope) || old.Rope.Theta != 5e5 || old.Rope.OriginalMaxPositions != 64 {
		t.Errorf("old form %+v, newer form %+v", old.Rope, newer.Rope)
	}
}

func FuzzConfig(f *testing.F) {
	f.Add([]byte(configJSON("llama", ``)))
	f.Add([]byte(configJSON("mistral", `"sliding_window":8,"eos_token_id":[1,2]`)))
	f.Add([]byte(configJSON("qwen2", `"use_sliding_window":true,"rope_scaling":{"type":"yarn","factor":4}`)))
	f.Add([]byte(configJSON("qwen3", `"rope_parameters":{"rope_type":"llama3","factor":8,"low_freq_factor":1,"high_freq_factor":4}`)))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := parseConfig(data)
		if err != nil {
			if !errors.Is(err, ErrFormat) && !errors.Is(err, ErrUnsupported) {
				t.Fatalf("error of no kind: %v", err)
			}
			return
		}
		if c.Layers < 64 {
			c.TensorNames()
		}
		if c.Rope.Dim < 1024 {
			c.Rope.InvFreq()
		}
	})
}
