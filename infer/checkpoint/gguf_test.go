package checkpoint

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"
)

// ggufWriter builds GGUFs for tests.
type ggufWriter struct {
	head, table, data []byte
	pairs, tensors    uint64
}

func (w *ggufWriter) str(b []byte, s string) []byte {
	return append(binary.LittleEndian.AppendUint64(b, uint64(len(s))), s...)
}

func (w *ggufWriter) meta(key string, v any) *ggufWriter {
	w.pairs++
	w.head = w.str(w.head, key)
	switch v := v.(type) {
	case int:
		w.head = le.AppendUint32(le.AppendUint32(w.head, 4), uint32(v))
	case float64:
		w.head = le.AppendUint32(le.AppendUint32(w.head, 6), math.Float32bits(float32(v)))
	case bool:
		w.head = append(le.AppendUint32(w.head, 7), map[bool]byte{true: 1}[v])
	case string:
		w.head = w.str(le.AppendUint32(w.head, 8), v)
	case []string:
		w.head = le.AppendUint64(le.AppendUint32(le.AppendUint32(w.head, 9), 8), uint64(len(v)))
		for _, s := range v {
			w.head = w.str(w.head, s)
		}
	case []int32:
		w.head = le.AppendUint64(le.AppendUint32(le.AppendUint32(w.head, 9), 5), uint64(len(v)))
		for _, x := range v {
			w.head = le.AppendUint32(w.head, uint32(x))
		}
	default:
		panic(v)
	}
	return w
}

// tensor adds a float32 tensor of that shape (outermost first).
func (w *ggufWriter) tensor(name string, values []float32, shape ...int) *ggufWriter {
	w.raw(name, 0, uint64(len(w.data)), shape...)
	for _, v := range values {
		w.data = le.AppendUint32(w.data, math.Float32bits(v))
	}
	for len(w.data)%32 != 0 {
		w.data = append(w.data, 0)
	}
	return w
}

// raw adds a row of the tensor table as it stands.
func (w *ggufWriter) raw(name string, kind uint32, offset uint64, shape ...int) *ggufWriter {
	w.tensors++
	w.table = le.AppendUint32(w.str(w.table, name), uint32(len(shape)))
	for _, d := range slices.Backward(shape) {
		w.table = le.AppendUint64(w.table, uint64(d))
	}
	w.table = le.AppendUint64(le.AppendUint32(w.table, kind), offset)
	return w
}

func (w *ggufWriter) bytes() []byte {
	b := le.AppendUint32([]byte("GGUF"), 3)
	b = le.AppendUint64(le.AppendUint64(b, w.tensors), w.pairs)
	b = append(append(b, w.head...), w.table...)
	for len(b)%32 != 0 {
		b = append(b, 0)
	}
	return append(b, w.data...)
}

// tinyGGUF is a whole model of one layer: 4 heads of 4, 2 for k and v. Row i of every matrix holds the Hugging Face row
// number in its first column; q and k are interleaved as llama.cpp's converter does for the llama architecture.
func tinyGGUF(arch string) *ggufWriter {
	const h, f, d, heads, kv, vocab = 16, 8, 4, 4, 2, 5
	w := &ggufWriter{}
	w.meta("general.architecture", arch).meta(arch+".block_count", 1).meta(arch+".embedding_length", h).meta(arch+".feed_forward_length", f).
		meta(arch+".attention.head_count", heads).meta(arch+".attention.head_count_kv", kv).meta(arch+".context_length", 64).
		meta(arch+".attention.layer_norm_rms_epsilon", 1e-5).meta(arch+".rope.freq_base", 5000.0).
		meta("tokenizer.ggml.tokens", []string{"a", "b", "c", "d", "e"}).meta("tokenizer.ggml.token_type", []int32{1, 1, 1, 3, 3}).
		meta("tokenizer.ggml.bos_token_id", 3).meta("tokenizer.ggml.eos_token_id", 4).meta("tokenizer.ggml.add_bos_token", true).
		meta("tokenizer.chat_template", "{{ x }}")
	matrix := func(name string, rows, cols int, interleave bool) {
		v := make([]float32, rows*cols)
		if bias := strings.HasSuffix(name, "bias"); bias {
			cols = 1
		}
		for i := range rows {
			at := i
			if interleave { // reshape(heads, 2, d/2).swapaxes(1, 2)
				head, half, j := i/d, i%d/(d/2), i%(d/2)
				at = head*d + 2*j + half
			}
			v[at*cols] = float32(i)
		}
		if strings.HasSuffix(name, "bias") {
			w.tensor(name, v, rows)
			return
		}
		w.tensor(name, v, rows, cols)
	}
	llama := arch == "llama"
	matrix("token_embd.weight", vocab, h, false)
	w.tensor("blk.0.attn_norm.weight", make([]float32, h), h).tensor("blk.0.ffn_norm.weight", make([]float32, h), h)
	matrix("blk.0.attn_q.weight", heads*d, h, llama)
	matrix("blk.0.attn_k.weight", kv*d, h, llama)
	matrix("blk.0.attn_v.weight", kv*d, h, false)
	matrix("blk.0.attn_q.bias", heads*d, 1, llama)
	matrix("blk.0.attn_k.bias", kv*d, 1, llama)
	matrix("blk.0.attn_v.bias", kv*d, 1, false)
	matrix("blk.0.attn_output.weight", h, heads*d, false)
	matrix("blk.0.ffn_gate.weight", f, h, false)
	matrix("blk.0.ffn_up.weight", f, h, false)
	matrix("blk.0.ffn_down.weight", h, f, false)
	return w.tensor("output_norm.weight", make([]float32, h), h)
}

func TestGGUFRowOrder(t *testing.T) {
	for _, arch := range []string{"llama", "qwen2"} {
		c, err := OpenBytes(tinyGGUF(arch).bytes())
		if err != nil {
			t.Fatal(err)
		}
		cfg := c.Config()
		if !cfg.TieEmbeddings || !cfg.AttentionBias || cfg.Vocab != 5 || cfg.Rope.Theta != 5000 || cfg.BOS != 3 || !slices.Equal(cfg.EOS, []int{4}) {
			t.Errorf("%s: config %+v", arch, cfg)
		}
		for _, n := range []string{"q_proj", "k_proj", "v_proj"} {
			x, err := c.Tensor("model.layers.0.self_attn." + n + ".weight")
			if err != nil {
				t.Fatal(err)
			}
			b, err := c.Tensor("model.layers.0.self_attn." + n + ".bias")
			if err != nil {
				t.Fatal(err)
			}
			bias := b.Float32s()
			for i := range x.Rows() {
				row := make([]float32, x.Cols())
				x.Row(i, row)
				if row[0] != float32(i) || bias[i] != float32(i) {
					t.Errorf("%s: row %d of %s is %v, of its bias %v", arch, i, n, row[0], bias[i])
				}
			}
			if x.InOrder() != (arch != "llama" || n == "v_proj") {
				t.Errorf("%s: %s in order: %v", arch, n, x.InOrder())
			}
		}
		m := c.GGUFMeta()
		if s, _ := m.Strings("tokenizer.ggml.tokens"); !slices.Equal(s, []string{"a", "b", "c", "d", "e"}) {
			t.Errorf("tokens %q", s)
		}
		if v, _ := m.Ints("tokenizer.ggml.token_type"); !slices.Equal(v, []int{1, 1, 1, 3, 3}) {
			t.Errorf("token types %v", v)
		}
		if b, ok := m.Bool("tokenizer.ggml.add_bos_token"); !b || !ok {
			t.Error("add_bos_token")
		}
		if s, ok := m.String("tokenizer.chat_template"); s != "{{ x }}" || !ok {
			t.Errorf("chat template %q", s)
		}
		c.Close()
	}
}

func TestGGUFRefuses(t *testing.T) {
	good := tinyGGUF("llama").bytes()
	patch := func(at int, b ...byte) []byte { return slices.Replace(slices.Clone(good), at, at+len(b), b...) }
	big := bytes.Repeat([]byte{255}, 8)
	for _, c := range []struct {
		name, want string
		data       []byte
	}{
		{"empty", "magic", nil},
		{"not a GGUF", "begins with", []byte("hello, world")},
		{"version 1", "version 1", patch(4, 1)},
		{"big-endian", "big-endian", patch(4, 0, 0, 0, 3)},
		{"tensor count lies", "tensor count", patch(8, big...)},
		{"metadata count lies", "metadata count", patch(16, big...)},
		{"key length lies", "metadata key", patch(24, big...)},
		{"truncated", "beyond the end", good[:len(good)-32]},
		{"duplicate key", `"general.architecture" occurs twice`, tinyGGUF("llama").meta("general.architecture", "llama").bytes()},
		{"duplicate tensor", `"output_norm.weight" occurs twice`, tinyGGUF("llama").tensor("output_norm.weight", nil, 1).bytes()},
		{"two names for one", "model.norm.weight", tinyGGUF("llama").tensor("model.norm.weight", make([]float32, 8), 8).bytes()},
		{"overlap", "overlap", tinyGGUF("llama").raw("x", 0, 0, 8).bytes()},
		{"offset beyond", `"x"`, tinyGGUF("llama").raw("x", 0, 1<<40, 8).bytes()},
		{"offset wraps", `"x"`, tinyGGUF("llama").raw("x", 0, math.MaxUint64-31, 8).bytes()},
		{"unaligned", "aligned", tinyGGUF("llama").raw("x", 0, 4, 1).bytes()},
		{"shape overflows", "too large", tinyGGUF("llama").raw("x", 0, 0, 1<<40, 1<<40).bytes()},
		{"partial block", "blocks of 32", tinyGGUF("llama").raw("x", 8, 0, 33).bytes()},
		{"unknown type", "unknown type 99", tinyGGUF("llama").raw("x", 99, 0, 32).bytes()},
		{"unread type", "IQ4_NL", tinyGGUF("llama").raw("x", 20, 0, 32).bytes()},
		{"no dimension", "0 dimensions", tinyGGUF("llama").raw("x", 0, 0).bytes()},
		{"alignment", "general.alignment = 24", tinyGGUF("llama").meta("general.alignment", 24).bytes()},
		{"other architecture", `general.architecture = "mamba"`, tinyGGUF("mamba").bytes()},
		{"rope scaling", "rope.scaling.type", tinyGGUF("llama").meta("llama.rope.scaling.type", "longrope").bytes()},
		{"experts", "expert_count", tinyGGUF("llama").meta("llama.expert_count", 8).bytes()},
		{"one part of several", "split.count", tinyGGUF("llama").meta("split.count", 2).bytes()},
		{"wrong shape", "model.embed_tokens.weight is [5 16], the config wants [7 16]", tinyGGUF("llama").meta("llama.vocab_size", 7).bytes()},
		{"missing tensor", "self_attn.q_norm.weight is missing", tinyGGUF("qwen3").bytes()},
	} {
		_, err := OpenBytes(c.data)
		if !errors.Is(err, ErrFormat) && !errors.Is(err, ErrUnsupported) || err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want one with %q", c.name, err, c.want)
		}
	}
}

func FuzzGGUF(f *testing.F) {
	f.Add(tinyGGUF("llama").bytes())
	f.Add(tinyGGUF("qwen2").meta("qwen2.rope.scaling.type", "yarn").meta("qwen2.rope.scaling.factor", 4.0).bytes())
	f.Add((&ggufWriter{}).meta("a", []int32{1}).raw("x", 12, 0, 256).bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := OpenBytes(data)
		if err != nil {
			if !errors.Is(err, ErrFormat) && !errors.Is(err, ErrUnsupported) {
				t.Fatalf("error of no kind: %v", err)
			}
			return
		}
		for _, n := range c.Names() {
			if x, err := c.Tensor(n); err == nil {
				x.Float32s()
			}
		}
		c.Config().Rope.InvFreq()
	})
}

// TestGGUFEndOfTurn: where a file does not say what ends a turn, the control tokens with the usual names do.
func TestGGUFEndOfTurn(t *testing.T) {
	for _, c := range []struct {
		eot    int64
		tokens []string
		want   []int
	}{
		{-1, []string{"a", "<|eot_id|>", "<|end_of_text|>", "<|eom_id|>", "<|end_of_text|>"}, []int{4, 3}}, // 1 is a word like others
		{-1, []string{"a", "b", "c", "d", "<|im_end|>"}, []int{4}},
		{2, []string{"a", "b", "c", "<|im_end|>", "<|eot_id|>"}, []int{4, 2}},
	} {
		cp, err := OpenBytes(tinyGGUF("qwen2").bytes())
		if err != nil {
			t.Fatal(err)
		}
		cp.meta.values["tokenizer.ggml.tokens"] = c.tokens
		if c.eot >= 0 {
			cp.meta.values["tokenizer.ggml.eot_token_id"] = c.eot
		}
		if got, err := cp.ggufConfig(); err != nil || !slices.Equal(got.EOS, c.want) {
			t.Errorf("%q, eot %d: %v end a text, want %v; %v", c.tokens, c.eot, got.EOS, c.want, err)
		}
		cp.Close()
	}
}
