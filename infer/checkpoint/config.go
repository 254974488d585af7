package checkpoint

import (
	"fmt"
	"math"
)

// Family is the architecture.
type Family string

// The families that are implemented.
const (
	Llama   Family = "llama"
	Mistral Family = "mistral"
	Qwen2   Family = "qwen2"
	Qwen3   Family = "qwen3"
)

// Config is a model's architecture, normalised over families and file formats.
type Config struct {
	Family      Family
	Layers      int // L
	Hidden      int // H
	FeedForward int // F
	Heads       int // Hq
	KVHeads     int // Hkv; divides Heads
	HeadDim     int // D
	Vocab       int // V, rows of the embedding

	NormEps       float64
	TieEmbeddings bool   // the embedding is the head too
	AttentionBias bool   // biases on q, k and v
	OutputBias    bool   // bias on o
	MLPBias       bool   // biases on gate, up and down
	QKNorm        bool   // RMSNorm over each head of q and k, before the rotation
	MaxPositions  int    // tokens of context
	SlidingWindow int    // tokens that a position sees, itself included; 0: all before it
	SlidingLayers []bool // [Layers] where only some layers have the window; nil: all
	Rope          Rope
	BOS, Pad      int    // token ids, -1: none
	EOS           []int  // token ids that end a text, generation_config's first
	TorchDType    string // dtype the checkpoint names, "" where it names none
}

// Window is layer l's sliding window in tokens, 0 for none.
func (c Config) Window(l int) int {
	if c.SlidingLayers != nil && !c.SlidingLayers[l] {
		return 0
	}
	return c.SlidingWindow
}

// maxLayers bounds the work that a lying file can cause.
const maxLayers = 4096

// Validate checks that the numbers describe a model; errors name the field as config.json spells it.
func (c Config) Validate() error {
	for _, f := range []struct {
		name string
		v    int
	}{
		{"num_hidden_layers", c.Layers}, {"hidden_size", c.Hidden}, {"intermediate_size", c.FeedForward},
		{"num_attention_heads", c.Heads}, {"num_key_value_heads", c.KVHeads}, {"head_dim", c.HeadDim},
		{"vocab_size", c.Vocab}, {"max_position_embeddings", c.MaxPositions},
	} {
		if f.v <= 0 || f.v > 1<<26 {
			return fmt.Errorf("%w: %s = %d", ErrFormat, f.name, f.v)
		}
	}
	switch {
	case c.Layers > maxLayers:
		return fmt.Errorf("%w: num_hidden_layers = %d, at most %d are allowed", ErrFormat, c.Layers, maxLayers)
	case c.Heads%c.KVHeads != 0:
		return fmt.Errorf("%w: num_attention_heads = %d is no multiple of num_key_value_heads = %d", ErrFormat, c.Heads, c.KVHeads)
	case c.HeadDim > 1<<16 || c.Heads > 1<<16:
		return fmt.Errorf("%w: num_attention_heads = %d, head_dim = %d", ErrFormat, c.Heads, c.HeadDim)
	case !(c.NormEps > 0) || math.IsInf(c.NormEps, 0):
		return fmt.Errorf("%w: rms_norm_eps = %v", ErrFormat, c.NormEps)
	case c.SlidingWindow < 0:
		return fmt.Errorf("%w: sliding_window = %d", ErrFormat, c.SlidingWindow)
	case c.SlidingLayers != nil && len(c.SlidingLayers) != c.Layers:
		return fmt.Errorf("%w: layer_types has %d entries for %d layers", ErrFormat, len(c.SlidingLayers), c.Layers)
	}
	return c.Rope.Validate()
}

// TensorNames lists the tensors that the model consists of, in the order of the forward pass. Biases and norms are
// listed where the model has them; lm_head.weight where it is not tied.
func (c Config) TensorNames() []string {
	var names []string
	c.tensors(func(name string, _ ...int) { names = append(names, name) })
	return names
}

// TensorShape is the shape of a tensor of TensorNames, nil for any other name.
func (c Config) TensorShape(name string) []int {
	var found []int
	c.tensors(func(n string, shape ...int) {
		if n == name {
			found = shape
		}
	})
	return found
}

func (c Config) tensors(add func(name string, shape ...int)) {
	q, kv := c.Heads*c.HeadDim, c.KVHeads*c.HeadDim
	add("model.embed_tokens.weight", c.Vocab, c.Hidden)
	for l := range c.Layers {
		p := fmt.Sprintf("model.layers.%d.", l)
		linear := func(name string, out, in int, bias bool) {
			add(p+name+".weight", out, in)
			if bias {
				add(p+name+".bias", out)
			}
		}
		add(p+"input_layernorm.weight", c.Hidden)
		linear("self_attn.q_proj", q, c.Hidden, c.AttentionBias)
		linear("self_attn.k_proj", kv, c.Hidden, c.AttentionBias)
		linear("self_attn.v_proj", kv, c.Hidden, c.AttentionBias)
		if c.QKNorm {
			add(p+"self_attn.q_norm.weight", c.HeadDim)
			add(p+"self_attn.k_norm.weight", c.HeadDim)
		}
		linear("self_attn.o_proj", c.Hidden, q, c.OutputBias)
		add(p+"post_attention_layernorm.weight", c.Hidden)
		linear("mlp.gate_proj", c.FeedForward, c.Hidden, c.MLPBias)
		linear("mlp.up_proj", c.FeedForward, c.Hidden, c.MLPBias)
		linear("mlp.down_proj", c.Hidden, c.FeedForward, c.MLPBias)
	}
	add("model.norm.weight", c.Hidden)
	if !c.TieEmbeddings {
		add("lm_head.weight", c.Vocab, c.Hidden)
	}
}
