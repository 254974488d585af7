package checkpoint

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
)

// hfConfig is config.json as published checkpoints write it. Pointers tell absent from zero.
type hfConfig struct {
	Architectures   []string        `json:"architectures"`
	ModelType       string          `json:"model_type"`
	Layers          int             `json:"num_hidden_layers"`
	Hidden          int             `json:"hidden_size"`
	FeedForward     int             `json:"intermediate_size"`
	Heads           int             `json:"num_attention_heads"`
	KVHeads         *int            `json:"num_key_value_heads"`
	HeadDim         *int            `json:"head_dim"`
	Vocab           int             `json:"vocab_size"`
	Act             *string         `json:"hidden_act"`
	NormEps         *float64        `json:"rms_norm_eps"`
	Tie             bool            `json:"tie_word_embeddings"`
	AttentionBias   bool            `json:"attention_bias"`
	MLPBias         bool            `json:"mlp_bias"`
	MaxPositions    *int            `json:"max_position_embeddings"`
	OriginalMax     *int            `json:"original_max_position_embeddings"`
	SlidingWindow   json.RawMessage `json:"sliding_window"`
	UseWindow       bool            `json:"use_sliding_window"`
	MaxWindowLayers *int            `json:"max_window_layers"`
	LayerTypes      []string        `json:"layer_types"`
	Theta           *float64        `json:"rope_theta"`
	Partial         *float64        `json:"partial_rotary_factor"`
	RopeScaling     *hfRope         `json:"rope_scaling"`
	RopeParameters  *hfRope         `json:"rope_parameters"`
	BOS             *int            `json:"bos_token_id"`
	EOS             ids             `json:"eos_token_id"`
	Pad             *int            `json:"pad_token_id"`
	TorchDType      string          `json:"torch_dtype"`
	DType           string          `json:"dtype"`
	Quantization    json.RawMessage `json:"quantization_config"`
}

type hfRope struct {
	RopeType       *string  `json:"rope_type"`
	Type           *string  `json:"type"`
	Theta          *float64 `json:"rope_theta"`
	Partial        *float64 `json:"partial_rotary_factor"`
	Factor         *float64 `json:"factor"`
	OriginalMax    *float64 `json:"original_max_position_embeddings"`
	Low            float64  `json:"low_freq_factor"`
	High           float64  `json:"high_freq_factor"`
	BetaFast       float64  `json:"beta_fast"`
	BetaSlow       float64  `json:"beta_slow"`
	Attention      float64  `json:"attention_factor"`
	MScale         float64  `json:"mscale"`
	MScaleAllDim   float64  `json:"mscale_all_dim"`
	Truncate       *bool    `json:"truncate"`
	FullAttention  any      `json:"full_attention"`
	SlidingPattern any      `json:"sliding_attention"`
}

// ids is one token id or a list of them.
type ids []int

func (v *ids) UnmarshalJSON(b []byte) error {
	*v = nil
	if bytes.HasPrefix(b, []byte("[")) {
		return json.Unmarshal(b, (*[]int)(v))
	}
	var one *int
	if err := json.Unmarshal(b, &one); err != nil {
		return err
	}
	if one != nil {
		*v = ids{*one}
	}
	return nil
}

// parseConfig reads a config.json.
func parseConfig(data []byte) (Config, error) {
	var h hfConfig
	if err := json.Unmarshal(data, &h); err != nil {
		return Config{}, fmt.Errorf("%w: config.json: %w", ErrFormat, err)
	}
	c, err := h.normalise()
	if err == nil {
		err = c.Validate()
	}
	if err != nil {
		return Config{}, fmt.Errorf("config.json: %w", err)
	}
	return c, nil
}

var architectures = map[string]Family{
	"LlamaForCausalLM": Llama, "MistralForCausalLM": Mistral, "Qwen2ForCausalLM": Qwen2, "Qwen3ForCausalLM": Qwen3,
}

func (h hfConfig) family() (Family, error) {
	f := Family(h.ModelType)
	if len(h.Architectures) > 0 {
		a, ok := architectures[h.Architectures[0]]
		if !ok {
			return "", fmt.Errorf("%w: architectures = %q (LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM and Qwen3ForCausalLM are)", ErrUnsupported, h.Architectures)
		}
		if f == "" {
			f = a
		}
	}
	switch f {
	case Llama, Mistral, Qwen2, Qwen3:
		return f, nil
	}
	return "", fmt.Errorf("%w: model_type = %q (llama, mistral, qwen2 and qwen3 are)", ErrUnsupported, f)
}

func (h hfConfig) normalise() (Config, error) {
	f, err := h.family()
	if err != nil {
		return Config{}, err
	}
	if a := or(h.Act, "silu"); a != "silu" && a != "swish" {
		return Config{}, fmt.Errorf("%w: hidden_act = %q (silu is)", ErrUnsupported, a)
	}
	if len(h.Quantization) > 0 && string(h.Quantization) != "null" {
		return Config{}, fmt.Errorf("%w: quantization_config is set; only plain weights and GGUF are read", ErrUnsupported)
	}
	c := Config{
		Family: f, Layers: h.Layers, Hidden: h.Hidden, FeedForward: h.FeedForward, Heads: h.Heads, Vocab: h.Vocab,
		NormEps: or(h.NormEps, 1e-6), TieEmbeddings: h.Tie, BOS: or(h.BOS, -1), EOS: h.EOS, Pad: or(h.Pad, -1), TorchDType: h.TorchDType,
	}
	if c.TorchDType == "" {
		c.TorchDType = h.DType
	}
	// Where a key is absent, Transformers' default for the family holds.
	kv, positions := h.Heads, 2048
	switch f {
	case Llama:
		c.AttentionBias, c.OutputBias, c.MLPBias = h.AttentionBias, h.AttentionBias, h.MLPBias
	case Mistral:
		kv, positions = 8, 4096*32
	case Qwen2:
		kv, positions, c.AttentionBias = 32, 32768, true
	case Qwen3:
		kv, positions, c.AttentionBias, c.OutputBias, c.QKNorm = 32, 32768, h.AttentionBias, h.AttentionBias, true
	}
	c.KVHeads, c.MaxPositions = or(h.KVHeads, kv), or(h.MaxPositions, positions)
	switch {
	case h.HeadDim != nil:
		c.HeadDim = *h.HeadDim
	case f == Qwen3:
		c.HeadDim = 128
	case h.Heads > 0 && h.Hidden%h.Heads == 0:
		c.HeadDim = h.Hidden / h.Heads
	default:
		return Config{}, fmt.Errorf("%w: hidden_size = %d is no multiple of num_attention_heads = %d", ErrFormat, h.Hidden, h.Heads)
	}
	if c.Layers > maxLayers {
		return Config{}, c.Validate()
	}
	if err := h.window(&c); err != nil {
		return Config{}, err
	}
	c.Rope, err = h.rope(c)
	return c, err
}

// window sets the sliding window: Mistral has it on all layers, Qwen where it is switched on and from a layer on.
func (h hfConfig) window(c *Config) error {
	w := 0
	if c.Family != Llama {
		w = 4096 // default of a key that is absent; null is none
	}
	if len(h.SlidingWindow) > 0 {
		var v *int
		if err := json.Unmarshal(h.SlidingWindow, &v); err != nil {
			return fmt.Errorf("%w: sliding_window: %w", ErrFormat, err)
		}
		w = or(v, 0)
	}
	switch {
	case c.Family == Llama, c.Family != Mistral && !h.UseWindow:
		return nil
	case c.Family == Mistral:
		c.SlidingWindow = w
		return nil
	}
	layers, some, every := make([]bool, max(c.Layers, 0)), false, true
	if h.LayerTypes != nil && len(h.LayerTypes) != c.Layers {
		return fmt.Errorf("%w: layer_types has %d entries for %d layers", ErrFormat, len(h.LayerTypes), c.Layers)
	}
	for l := range layers {
		layers[l] = l >= or(h.MaxWindowLayers, 28)
		if h.LayerTypes != nil {
			switch h.LayerTypes[l] {
			case "full_attention", "sliding_attention":
				layers[l] = h.LayerTypes[l] == "sliding_attention"
			default:
				return fmt.Errorf("%w: layer_types[%d] = %q (full_attention and sliding_attention are)", ErrUnsupported, l, h.LayerTypes[l])
			}
		}
		some, every = some || layers[l], every && layers[l]
	}
	if some && w != 0 {
		c.SlidingWindow = w
		if !every {
			c.SlidingLayers = layers
		}
	}
	return nil
}

func (h hfConfig) rope(c Config) (Rope, error) {
	p := h.RopeParameters
	if p == nil {
		p = h.RopeScaling
	}
	if p == nil {
		p = &hfRope{}
	}
	if p.FullAttention != nil || p.SlidingPattern != nil {
		return Rope{}, fmt.Errorf("%w: rope_parameters per layer type", ErrUnsupported)
	}
	if f := or(p.Partial, or(h.Partial, 1)); f != 1 {
		return Rope{}, fmt.Errorf("%w: partial_rotary_factor = %v (1 is)", ErrUnsupported, f)
	}
	r := Rope{
		Type: RopeType(or(p.RopeType, or(p.Type, string(RopeDefault)))), Dim: c.HeadDim, Theta: or(p.Theta, or(h.Theta, 10000)),
		Factor: or(p.Factor, 0), LowFreqFactor: p.Low, HighFreqFactor: p.High, AttentionFactor: p.Attention,
		MScale: p.MScale, MScaleAllDim: p.MScaleAllDim, NoTruncate: !or(p.Truncate, true),
	}
	switch r.Type {
	case RopeDefault:
		return Rope{Type: r.Type, Dim: r.Dim, Theta: r.Theta}, nil
	case RopeLlama3, RopeYarn:
		original := or(p.OriginalMax, float64(c.MaxPositions))
		if h.OriginalMax != nil {
			original = float64(*h.OriginalMax)
		}
		if original != math.Trunc(original) || !(original >= 1 && original <= 1<<40) {
			return Rope{}, fmt.Errorf("%w: original_max_position_embeddings = %v", ErrFormat, original)
		}
		r.OriginalMaxPositions = int(original)
	}
	if r.Type == RopeYarn {
		r.BetaFast, r.BetaSlow = p.BetaFast, p.BetaSlow
		if r.BetaFast == 0 {
			r.BetaFast = 32
		}
		if r.BetaSlow == 0 {
			r.BetaSlow = 1
		}
		if p.Factor == nil {
			r.Factor = float64(c.MaxPositions) / float64(r.OriginalMaxPositions)
		}
	}
	return r, nil
}

func or[T any](p *T, otherwise T) T {
	if p == nil {
		return otherwise
	}
	return *p
}
