package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"bhive/adapters/safetensors"
	"bhive/finetune"
	"bhive/infer"
	"bhive/infer/checkpoint"
	"bhive/infer/demo"
)

// base is the frozen model's file and its text.
type base struct {
	cp      *checkpoint.Checkpoint
	encoder finetune.Encoder
}

func openBase(o options) (b *base, err error) {
	b = &base{}
	if o.model == "demo" {
		b.cp, err = checkpoint.OpenFS(demo.FS())
	} else {
		b.cp, err = checkpoint.Open(o.model)
	}
	if err != nil {
		return nil, err
	}
	tok, template, err := infer.LoadText(b.cp, nil)
	if err != nil {
		b.close()
		return nil, fmt.Errorf("the model's text: %w", err)
	}
	b.encoder = finetune.NewEncoder(tok, template, b.cp.Config().EOS)
	return b, nil
}

func (b *base) close() { b.cp.Close() }

// task is what is learnt: answers to questions.
type task struct{ train, test []finetune.Example }

func readTask(enc finetune.Encoder, o options) (t task, err error) {
	if t.train, err = readProblems(filepath.Join(o.data, "gsm8k_train.jsonl"), enc, o.train, o.length); err != nil {
		return t, err
	}
	t.test, err = readProblems(filepath.Join(o.data, "gsm8k_test.jsonl"), enc, o.test, o.length)
	return t, err
}

// readProblems reads the first n lines {"question", "answer"} that are short enough: the question is a user's turn, the answer is trained.
func readProblems(path string, enc finetune.Encoder, n, length int) (out []finetune.Example, err error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	lines := bufio.NewScanner(bytes.NewReader(data))
	lines.Buffer(nil, 1<<20)
	for number := 1; len(out) < n && lines.Scan(); number++ {
		var p struct{ Question, Answer string }
		if err := json.Unmarshal(lines.Bytes(), &p); err != nil {
			return nil, fmt.Errorf("%s, line %d: %w", path, number, err)
		}
		line, err := json.Marshal(map[string]string{"prompt": p.Question, "completion": p.Answer})
		if err != nil {
			return nil, err
		}
		e, err := finetune.ReadExamples(context.Background(), bytes.NewReader(line), enc, finetune.ReadOptions{Param: path, MaxLength: 1 << 20})
		if err != nil {
			return nil, fmt.Errorf("%s, line %d: %w", path, number, err)
		}
		if len(e.Examples[0].IDs) <= length {
			out = append(out, e.Examples...)
		}
	}
	return out, lines.Err()
}

func tokensOf(set []finetune.Example) (n int) {
	for _, e := range set {
		n += len(e.IDs)
	}
	return n
}

// export writes data.json, and the weights as they are trained on: bfloat16, in Hugging Face's order, under base/.
func export(b *base, t task, o options) error {
	dir := filepath.Join(o.out, "base")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	type example struct {
		IDs    []int32 `json:"ids"`
		Labels []int32 `json:"labels"` // the token after each, −1 where it is not trained
	}
	convert := func(set []finetune.Example) (out []example) {
		for _, e := range set {
			out = append(out, example{e.IDs, e.Labels})
		}
		return out
	}
	orders := map[string][]int{}
	for seed := 1; seed <= o.seeds; seed++ {
		order := finetune.NewOrder(len(t.train), int64(seed))
		var list []int
		for i := range len(t.train) {
			list = append(list, order.At(int64(i)))
		}
		orders[fmt.Sprint(seed)] = list
	}
	data := map[string]any{"train": convert(t.train), "test": convert(t.test), "orders": orders, "batch": o.batch, "steps": len(t.train) / o.batch}
	if err := writeJSON(filepath.Join(o.out, "data.json"), data); err != nil {
		return err
	}
	c := b.cp.Config()
	config := map[string]any{"model_type": "llama", "architectures": []string{"LlamaForCausalLM"}, "hidden_size": c.Hidden, "intermediate_size": c.FeedForward, "num_hidden_layers": c.Layers,
		"num_attention_heads": c.Heads, "num_key_value_heads": c.KVHeads, "head_dim": c.HeadDim, "vocab_size": c.Vocab, "rms_norm_eps": c.NormEps, "rope_theta": c.Rope.Theta,
		"tie_word_embeddings": c.TieEmbeddings, "max_position_embeddings": c.MaxPositions, "attention_bias": c.AttentionBias, "mlp_bias": c.MLPBias, "hidden_act": "silu"}
	if err := writeJSON(filepath.Join(dir, "config.json"), config); err != nil {
		return err
	}
	f, err := os.Create(filepath.Join(dir, "model.safetensors"))
	if err != nil {
		return err
	}
	defer f.Close()
	tensors, err := weights(b.cp)
	if err != nil {
		return err
	}
	if err := safetensors.Write(f, tensors, map[string]string{"format": "pt"}); err != nil {
		return err
	}
	return f.Close()
}

// weights are the model's tensors as bfloat16.
func weights(cp *checkpoint.Checkpoint) (out []safetensors.Tensor, err error) {
	for _, name := range cp.Config().TensorNames() {
		t, err := cp.Tensor(name)
		if err != nil {
			return nil, err
		}
		row := make([]uint16, t.Cols())
		data := make([]byte, 0, 2*t.Rows()*t.Cols())
		for i := range t.Rows() {
			t.BF16Row(i, row)
			for _, w := range row {
				data = append(data, byte(w), byte(w>>8))
			}
		}
		out = append(out, safetensors.Tensor{Name: name, DType: safetensors.BF16, Shape: t.Shape, Data: data})
	}
	return out, nil
}

func writeJSON(path string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o644)
}
