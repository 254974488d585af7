package checkpoint

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"

	"bhive/adapters/safetensors"
)

// Limits of the small files, in bytes.
const (
	maxConfigFile    = 4 << 20
	maxIndexFile     = 64 << 20
	maxTokenizerFile = 256 << 20
)

// openDir reads a Hugging Face directory; load gives the bytes of a weights file.
func (c *Checkpoint) openDir(fsys fs.FS, load func(name string) ([]byte, error)) error {
	c.files = fsys
	data, err := readFile(fsys, "config.json", maxConfigFile)
	if err != nil {
		return err
	}
	if c.config, err = parseConfig(data); err != nil {
		return err
	}
	data, err = readFile(fsys, "generation_config.json", maxConfigFile)
	switch {
	case err == nil:
		if c.generation, err = parseGeneration(data); err != nil {
			return err
		}
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	g := c.generation
	if len(g.EOS) > 0 {
		c.config.EOS = g.EOS
	}
	c.config.BOS, c.config.Pad = or(g.BOS, c.config.BOS), or(g.Pad, c.config.Pad)
	shards, index, err := weightFiles(fsys)
	if err != nil {
		return err
	}
	c.tensors = map[string]Tensor{}
	in := map[string]string{}
	for _, shard := range shards {
		data, err := load(shard)
		if err != nil {
			return fmt.Errorf("%s: %w", shard, err)
		}
		f, err := safetensors.Open(bytes.NewReader(data), int64(len(data)))
		if err != nil {
			return fmt.Errorf("%w: %s: %w", ErrFormat, shard, err)
		}
		for _, name := range f.Names() {
			if other, ok := in[name]; ok {
				return fmt.Errorf("%w: tensor %s is in both %s and %s", ErrFormat, name, other, shard)
			}
			t, _ := f.Info(name)
			in[name] = shard
			c.tensors[name] = Tensor{Name: name, Shape: t.Shape, DType: DType(t.DType), data: data[t.Offset : t.Offset+t.Size : t.Offset+t.Size]}
		}
	}
	for name, shard := range index {
		if in[name] != shard {
			return fmt.Errorf("%w: tensor %s is not in %s, where the index puts it", ErrFormat, name, shard)
		}
	}
	return nil
}

// weightFiles lists the safetensors files, with the index of tensor to file where there are several.
func weightFiles(fsys fs.FS) (shards []string, index map[string]string, err error) {
	const one, many = "model.safetensors", "model.safetensors.index.json"
	if _, err := fs.Stat(fsys, one); err == nil {
		return []string{one}, nil, nil
	}
	data, err := readFile(fsys, many, maxIndexFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fmt.Errorf("%w: neither %s nor %s is there; other forms of weights are not read", ErrUnsupported, one, many)
	}
	if err != nil {
		return nil, nil, err
	}
	var doc struct {
		Map map[string]string `json:"weight_map"`
	}
	if err := json.Unmarshal(data, &doc); err != nil {
		return nil, nil, fmt.Errorf("%w: %s: %w", ErrFormat, many, err)
	}
	if len(doc.Map) == 0 {
		return nil, nil, fmt.Errorf("%w: %s: weight_map is empty", ErrFormat, many)
	}
	for name, shard := range doc.Map {
		if !fs.ValidPath(shard) || path.Base(shard) != shard || strings.ContainsAny(shard, `\:`) || !strings.HasSuffix(shard, ".safetensors") {
			return nil, nil, fmt.Errorf("%w: %s: weight_map puts %s into %q, which is no file name of this directory", ErrFormat, many, name, shard)
		}
		shards = append(shards, shard)
	}
	slices.Sort(shards)
	return slices.Compact(shards), doc.Map, nil
}

// readFile reads a file of at most limit bytes.
func readFile(fsys fs.FS, name string, limit int64) ([]byte, error) {
	f, err := fsys.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%w: %s is over %d bytes", ErrFormat, name, limit)
	}
	return data, nil
}

// optional reads a file of the directory; nil where there is no such file, or no directory.
func (c *Checkpoint) optional(name string) ([]byte, error) {
	if c.files == nil {
		return nil, nil
	}
	data, err := readFile(c.files, name, maxTokenizerFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("checkpoint %s: %w", c.name, err)
	}
	return data, nil
}

// TokenizerJSON is tokenizer.json, nil where there is none (a GGUF has its tokenizer in GGUFMeta).
func (c *Checkpoint) TokenizerJSON() ([]byte, error) { return c.optional("tokenizer.json") }

// TokenizerConfig is tokenizer_config.json, nil where there is none.
func (c *Checkpoint) TokenizerConfig() ([]byte, error) { return c.optional("tokenizer_config.json") }

// ChatTemplateFile is chat_template.jinja, or with a name the template of that name in additional_chat_templates; nil where there is no
// such file. A template in tokenizer_config.json is not looked for.
func (c *Checkpoint) ChatTemplateFile(name string) ([]byte, error) {
	if name == "" {
		return c.optional("chat_template.jinja")
	}
	return c.optional("additional_chat_templates/" + name + ".jinja")
}
