package checkpoint

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// GGUFMeta is the metadata of a GGUF, nil for a checkpoint of another form.
func (c *Checkpoint) GGUFMeta() *GGUFMeta { return c.meta }

// openGGUF reads a GGUF into the checkpoint.
func (c *Checkpoint) openGGUF(data []byte) error {
	f, err := parseGGUF(data)
	if err != nil {
		return err
	}
	c.meta, c.tensors = f.meta, map[string]Tensor{}
	for _, t := range f.tensors {
		t.Name = canonicalName(t.Name)
		if _, ok := c.tensors[t.Name]; ok {
			return fmt.Errorf("%w: two tensors are named %s", ErrFormat, t.Name)
		}
		c.tensors[t.Name] = t
	}
	if c.config, err = c.ggufConfig(); err != nil {
		return fmt.Errorf("GGUF metadata: %w", err)
	}
	if err := c.config.Validate(); err != nil {
		return fmt.Errorf("GGUF metadata: %w", err)
	}
	c.generation.EOS = c.config.EOS
	if arch, _ := f.meta.String("general.architecture"); arch == "llama" {
		return c.restoreOrder()
	}
	return nil
}

var ggufNames = map[string]string{
	"attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
	"attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
	"ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}

// canonicalName is the Hugging Face name of a GGUF's tensor; a name that has none stays.
func canonicalName(name string) string {
	switch name {
	case "token_embd.weight":
		return "model.embed_tokens.weight"
	case "output_norm.weight":
		return "model.norm.weight"
	case "output.weight":
		return "lm_head.weight"
	}
	p := strings.Split(name, ".")
	if len(p) == 4 && p[0] == "blk" && ggufNames[p[2]] != "" {
		return "model.layers." + p[1] + "." + ggufNames[p[2]] + "." + p[3]
	}
	return name
}

// restoreOrder undoes what llama.cpp's converter does to q and k of the llama architecture: within each head the rows
// 0 … D-1 lie in the file as 0, D/2, 1, D/2+1, …
func (c *Checkpoint) restoreOrder() error {
	d := c.config.HeadDim
	for l := range c.config.Layers {
		for _, p := range []string{"q_proj", "k_proj"} {
			name := fmt.Sprintf("model.layers.%d.self_attn.%s.", l, p)
			if t, ok := c.tensors[name+"weight"]; ok && len(t.Shape) == 2 && t.Shape[0]%d == 0 {
				t.interleaved = d
				c.tensors[t.Name] = t
			}
			t, ok := c.tensors[name+"bias"]
			if !ok || len(t.Shape) != 1 || t.Shape[0]%d != 0 {
				continue
			}
			if n, _ := t.DType.Block(); n != 1 {
				return fmt.Errorf("%w: tensor %s is stored as %s", ErrUnsupported, t.Name, t.DType)
			}
			column := Tensor{Name: t.Name, Shape: []int{t.Shape[0], 1}, DType: t.DType, data: t.data, interleaved: d}
			t.data = nil
			for i := range column.Rows() {
				t.data = append(t.data, column.RowBytes(i)...)
			}
			c.tensors[t.Name] = t
		}
	}
	return nil
}

// ggufConfig builds the config from metadata under the architecture's prefix.
func (c *Checkpoint) ggufConfig() (Config, error) {
	m := c.meta
	if n, ok := m.Int("split.count"); ok && n > 1 {
		return Config{}, fmt.Errorf("%w: split.count = %d; merge the parts into one file", ErrUnsupported, n)
	}
	arch, _ := m.String("general.architecture")
	f := Family(arch)
	switch f {
	case Llama, Mistral, Qwen2, Qwen3:
	default:
		return Config{}, fmt.Errorf("%w: general.architecture = %q (llama, mistral, qwen2 and qwen3 are)", ErrUnsupported, arch)
	}
	if n, ok := m.Int(arch + ".expert_count"); ok && n > 0 {
		return Config{}, fmt.Errorf("%w: %s.expert_count = %d (dense models are)", ErrUnsupported, arch, n)
	}
	r := metaReader{m: m, prefix: arch + "."}
	out := Config{
		Family: f, Layers: r.int("block_count", -1), Hidden: r.int("embedding_length", -1), FeedForward: r.int("feed_forward_length", -1),
		Heads: r.int("attention.head_count", -1), NormEps: r.float("attention.layer_norm_rms_epsilon", 1e-6),
		MaxPositions: r.int("context_length", -1), SlidingWindow: r.int("attention.sliding_window", 0),
	}
	out.KVHeads = r.int("attention.head_count_kv", max(out.Heads, 1))
	if r.err != nil {
		return Config{}, r.err
	}
	if out.Layers > maxLayers || out.Heads <= 0 {
		return Config{}, fmt.Errorf("%w: block_count = %d, attention.head_count = %d", ErrFormat, out.Layers, out.Heads)
	}
	out.HeadDim = r.int("attention.key_length", out.Hidden/out.Heads)
	if v := r.int("attention.value_length", out.HeadDim); v != out.HeadDim {
		return Config{}, fmt.Errorf("%w: attention.value_length = %d, attention.key_length = %d (equal ones are)", ErrUnsupported, v, out.HeadDim)
	}
	if embed, ok := c.tensors["model.embed_tokens.weight"]; ok {
		out.Vocab = r.int("vocab_size", embed.Shape[0])
	}
	has := func(name string) bool { _, ok := c.tensors[name]; return ok }
	out.TieEmbeddings = !has("lm_head.weight")
	out.AttentionBias = f == Qwen2 || has("model.layers.0.self_attn.q_proj.bias")
	out.OutputBias = has("model.layers.0.self_attn.o_proj.bias")
	out.MLPBias = has("model.layers.0.mlp.gate_proj.bias")
	out.QKNorm = f == Qwen3
	if embed, ok := c.tensors["model.embed_tokens.weight"]; ok {
		out.TorchDType = map[DType]string{F32: "float32", F16: "float16", BF16: "bfloat16"}[embed.DType]
	}
	t := metaReader{m: m, prefix: "tokenizer.ggml."}
	out.BOS, out.Pad = t.int("bos_token_id", -1), t.int("padding_token_id", -1)
	for _, key := range []string{"eos_token_id", "eot_token_id", "eom_token_id"} {
		if id := t.int(key, -1); id >= 0 && !slices.Contains(out.EOS, id) {
			out.EOS = append(out.EOS, id)
		}
	}
	if !m.Has("tokenizer.ggml.eot_token_id") {
		for _, id := range m.turnEnds(out.Vocab) {
			if !slices.Contains(out.EOS, id) {
				out.EOS = append(out.EOS, id)
			}
		}
	}
	var err error
	if out.Rope, err = c.ggufRope(&r, out); err != nil {
		return Config{}, err
	}
	if r.err == nil {
		r.err = t.err
	}
	return out, r.err
}

// turnEnds are the control tokens that end a turn by their names, as llama.cpp finds them where a file does not say: converters wrote the base's
// end-of-text alone, and a chat would go on with turns of both sides.
func (m *GGUFMeta) turnEnds(vocab int) (ids []int) {
	tokens, _ := m.Strings("tokenizer.ggml.tokens")
	types, _ := m.Ints("tokenizer.ggml.token_type")
	for i, token := range tokens[:min(len(tokens), len(types), max(vocab, 0))] {
		switch token {
		case "<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>":
			if types[i] == ggufControl {
				ids = append(ids, i)
			}
		}
	}
	return ids
}

// ggufControl is the type of tokens that are no text.
const ggufControl = 3

func (c *Checkpoint) ggufRope(r *metaReader, cfg Config) (Rope, error) {
	rope := Rope{Type: RopeDefault, Dim: cfg.HeadDim, Theta: r.float("rope.freq_base", 10000)}
	if d := r.int("rope.dimension_count", cfg.HeadDim); d != cfg.HeadDim {
		return Rope{}, fmt.Errorf("%w: rope.dimension_count = %d for heads of %d (the whole head is)", ErrUnsupported, d, cfg.HeadDim)
	}
	if t, ok := c.tensors["rope_freqs.weight"]; ok {
		if t.DType != F32 || len(t.Shape) != 1 {
			return Rope{}, fmt.Errorf("%w: rope_freqs.weight is %s%v", ErrFormat, t.DType, t.Shape)
		}
		rope.Type, rope.FreqFactors = RopeLlama3, t.Float32s()
		return rope, nil
	}
	scaling, ok := r.m.String(r.prefix + "rope.scaling.type")
	rope.Factor = r.float("rope.scaling.factor", r.float("rope.scale_linear", 0))
	if !ok && rope.Factor != 0 && rope.Factor != 1 {
		scaling = "linear"
	}
	switch scaling {
	case "", "none":
		rope.Factor = 0
	case "linear":
		rope.Type = RopeLinear
	case "yarn":
		rope.Type, rope.OriginalMaxPositions = RopeYarn, r.int("rope.scaling.original_context_length", cfg.MaxPositions)
		rope.BetaFast, rope.BetaSlow = r.float("rope.scaling.yarn_beta_fast", 32), r.float("rope.scaling.yarn_beta_slow", 1)
		// llama.cpp multiplies yarn's own factor by this one.
		if a := r.float("rope.scaling.yarn_attn_factor", r.float("rope.scaling.attn_factor", 1)); a != 1 {
			rope.AttentionFactor = a * (0.1*math.Log(max(rope.Factor, 1)) + 1)
		}
	default:
		return Rope{}, fmt.Errorf("%w: %srope.scaling.type = %q (none, linear and yarn are)", ErrUnsupported, r.prefix, scaling)
	}
	return rope, nil
}

// metaReader reads numbers under a prefix; the first error sticks.
type metaReader struct {
	m      *GGUFMeta
	prefix string
	err    error
}

// int is the key's value, or the default where it is absent; a negative default says that it is needed, but for ids.
func (r *metaReader) int(key string, otherwise int) int {
	v, ok := r.m.Int(r.prefix + key)
	switch {
	case ok:
		return v
	case r.m.Has(r.prefix+key) && r.err == nil:
		r.err = fmt.Errorf("%w: %s%s is no integer", ErrFormat, r.prefix, key)
	case otherwise < 0 && r.prefix != "tokenizer.ggml." && r.err == nil:
		r.err = fmt.Errorf("%w: %s%s is missing", ErrFormat, r.prefix, key)
	}
	return otherwise
}

func (r *metaReader) float(key string, otherwise float64) float64 {
	v, ok := r.m.Float(r.prefix + key)
	if ok {
		return v
	}
	if r.m.Has(r.prefix+key) && r.err == nil {
		r.err = fmt.Errorf("%w: %s%s is no float", ErrFormat, r.prefix, key)
	}
	return otherwise
}
