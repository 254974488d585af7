package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"strconv"
	"strings"

	"bhive/adapters"
	"bhive/infer"
	"bhive/infer/checkpoint"
	"bhive/infer/demo"
	"bhive/infer/tokenizer"
)

// randomShare is the most of a device's memory that a random model's weights take.
const randomShare = 0.7

// loadRandom makes a model of a known shape with weights from a seed, cut to the layers that the device holds. Its text side is the demo
// model's, with made-up words up to the end of the vocabulary.
func (f *modelFlags) loadRandom(ctx context.Context, log *slog.Logger, name string, basis basisOf, tokens func(*tokenizer.Tokenizer)) (*loaded, error) {
	config, err := infer.RandomConfig(name)
	if err != nil {
		return nil, err
	}
	cp, err := checkpoint.OpenFS(demo.FS())
	if err != nil {
		return nil, err
	}
	defer cp.Close()
	l := &loaded{}
	if _, l.template, err = infer.LoadText(cp, nil); err != nil {
		return nil, err
	}
	raw, err := cp.TokenizerJSON()
	if err != nil {
		return nil, fmt.Errorf("the demo model's tokenizer: %w", err)
	}
	if l.tokenizer, err = wideTokenizer(raw, config.Vocab); err != nil {
		return nil, err
	}
	if tokens != nil {
		tokens(l.tokenizer)
	}
	if l.backend, l.lent, err = openDevice(f, log); err != nil {
		return nil, err
	}
	rows := 64 // an estimate: the basis is not there yet
	fitting, err := infer.FitRandom(name, rows, int64(randomShare*float64(l.backend.Info().MemoryTotal)))
	if err != nil {
		l.close()
		return nil, err
	}
	if fitting != name {
		log.Warn("the model is cut to the layers that fit", "asked", name, "model", fitting)
	}
	l.name = "random-" + strings.ReplaceAll(fitting, ":", "-")
	if config, err = infer.RandomConfig(fitting); err != nil {
		l.close()
		return nil, err
	}
	hash := infer.RandomHash(fitting, 1)
	return f.onDevice(ctx, log, l, hash, config, basis, func(b *adapters.Basis) (*infer.Model, error) {
		return infer.LoadRandom(ctx, l.backend, fitting, 1, b, infer.LoadConfig{Format: f.format(), BaseHash: hash})
	})
}

// wideTokenizer is a tokenizer (tokenizer.json, BPE) with words of its own for the ids from its vocabulary's end up to vocab, which no text
// is encoded to: what a random model says can be read, if not understood.
func wideTokenizer(raw []byte, vocab int) (*tokenizer.Tokenizer, error) {
	var file map[string]json.RawMessage
	var model map[string]json.RawMessage
	var ids map[string]int
	for _, x := range []struct {
		from []byte
		key  string
		to   any
	}{{raw, "", &file}, {nil, "model", &model}, {nil, "vocab", &ids}} {
		switch x.key {
		case "model":
			x.from = file["model"]
		case "vocab":
			x.from = model["vocab"]
		}
		if err := json.Unmarshal(x.from, x.to); err != nil {
			return nil, fmt.Errorf("widening a tokenizer: %s: %w", x.key, err)
		}
	}
	for id := len(ids); id < vocab; id++ {
		word := "Ġw" + strconv.FormatInt(int64(id), 36) // Ġ is a space to a byte-level BPE
		for _, taken := ids[word]; taken; _, taken = ids[word] {
			word += "w"
		}
		ids[word] = id
	}
	var err error
	if model["vocab"], err = json.Marshal(ids); err == nil {
		if file["model"], err = json.Marshal(model); err == nil {
			raw, err = json.Marshal(file)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("widening a tokenizer: %w", err)
	}
	return tokenizer.Parse(raw)
}
