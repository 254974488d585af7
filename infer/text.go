package infer

import (
	"errors"
	"fmt"

	"bhive/infer/chat"
	"bhive/infer/checkpoint"
	"bhive/infer/tokenizer"
)

// LoadText makes a checkpoint's tokenizer and, where it has one, its chat template. Another template than its own may be given.
func LoadText(cp *checkpoint.Checkpoint, other []byte) (*tokenizer.Tokenizer, *chat.Template, error) {
	if m := cp.GGUFMeta(); m != nil {
		return ggufText(m, other)
	}
	data, err := cp.TokenizerJSON()
	if err != nil {
		return nil, nil, fmt.Errorf("reading tokenizer.json: %w", err)
	}
	if data == nil {
		return nil, nil, fmt.Errorf("%w: there is no tokenizer.json; other forms of tokenizers are not read", checkpoint.ErrUnsupported)
	}
	t, err := tokenizer.Parse(data)
	if err != nil {
		return nil, nil, fmt.Errorf("tokenizer.json: %w", err)
	}
	config, err := cp.TokenizerConfig()
	if err != nil {
		return nil, nil, fmt.Errorf("reading tokenizer_config.json: %w", err)
	}
	var file, tools []byte
	if file = other; other == nil {
		file, err = cp.ChatTemplateFile("")
		if err == nil {
			tools, err = cp.ChatTemplateFile("tool_use")
		}
		if err != nil {
			return nil, nil, fmt.Errorf("reading the chat template: %w", err)
		}
	}
	template, err := chat.FromHF(config, file)
	if err == nil && tools != nil {
		template, err = template.WithTools(string(tools))
	}
	switch {
	case errors.Is(err, chat.ErrNoTemplate):
		return t, nil, nil
	case err != nil:
		return nil, nil, fmt.Errorf("the model's chat template: %w", err)
	}
	return t, template, nil
}

// ggufText reads the metadata keys tokenizer.*.
func ggufText(m *checkpoint.GGUFMeta, other []byte) (*tokenizer.Tokenizer, *chat.Template, error) {
	const prefix = "tokenizer.ggml."
	var v tokenizer.GGUFVocab
	v.Model, _ = m.String(prefix + "model")
	v.Pre, _ = m.String(prefix + "pre")
	v.Tokens, _ = m.Strings(prefix + "tokens")
	v.Merges, _ = m.Strings(prefix + "merges")
	v.Scores, _ = m.Floats(prefix + "scores")
	types, _ := m.Ints(prefix + "token_type")
	for _, t := range types {
		v.TokenTypes = append(v.TokenTypes, int32(t))
	}
	for key, at := range map[string]**int{"bos_token_id": &v.BOS, "eos_token_id": &v.EOS, "padding_token_id": &v.Pad, "unknown_token_id": &v.Unk} {
		if id, ok := m.Int(prefix + key); ok {
			*at = &id
		}
	}
	if add, ok := m.Bool(prefix + "add_bos_token"); ok {
		v.AddBOS = &add
	}
	v.AddEOS, _ = m.Bool(prefix + "add_eos_token")
	v.AddSpacePrefix = true
	if add, ok := m.Bool(prefix + "add_space_prefix"); ok {
		v.AddSpacePrefix = add
	}
	t, err := tokenizer.FromGGUF(v)
	if err != nil {
		return nil, nil, fmt.Errorf("the tokenizer in the GGUF's metadata: %w", err)
	}
	source, ok := m.String("tokenizer.chat_template")
	tools, hasTools := m.String("tokenizer.chat_template.tool_use")
	if other != nil {
		source, ok, hasTools = string(other), true, false
	}
	if !ok {
		return t, nil, nil
	}
	var o chat.Options
	for at, id := range map[*string]*int{&o.BOS: v.BOS, &o.EOS: v.EOS, &o.Pad: v.Pad, &o.Unk: v.Unk} {
		if id != nil && *id >= 0 && *id < len(v.Tokens) {
			*at = v.Tokens[*id]
		}
	}
	template, err := chat.Parse(source, o)
	if err == nil && hasTools {
		template, err = template.WithTools(tools)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("the chat template in the GGUF's metadata: %w", err)
	}
	return t, template, nil
}
