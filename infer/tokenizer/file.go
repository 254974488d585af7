package tokenizer

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"strings"
)

type fileJSON struct {
	Model         json.RawMessage
	AddedTokens   []addedToken `json:"added_tokens"`
	Normalizer    json.RawMessage
	PreTokenizer  json.RawMessage `json:"pre_tokenizer"`
	PostProcessor json.RawMessage `json:"post_processor"`
	Decoder       json.RawMessage
}

type modelJSON struct {
	Type         string
	Vocab        map[string]int64
	Merges       mergeList
	Dropout      *float64
	UnkToken     *string `json:"unk_token"`
	Prefix       *string `json:"continuing_subword_prefix"`
	Suffix       *string `json:"end_of_word_suffix"`
	FuseUnk      bool    `json:"fuse_unk"`
	ByteFallback bool    `json:"byte_fallback"`
	IgnoreMerges bool    `json:"ignore_merges"`
}

// mergeList reads merges, either ["a b", …] or [["a", "b"], …].
type mergeList [][2]string

func (m *mergeList) UnmarshalJSON(data []byte) error {
	inner := bytes.TrimLeft(bytes.TrimPrefix(data, []byte("[")), " \t\r\n")
	if len(inner) > 0 && inner[0] == '"' {
		var lines []string
		if err := json.Unmarshal(data, &lines); err != nil {
			return err
		}
		pairs, err := parseMerges(lines)
		*m = pairs
		return err
	}
	var pairs [][]string
	if err := json.Unmarshal(data, &pairs); err != nil {
		return err
	}
	for i, p := range pairs {
		if len(p) != 2 {
			return fmt.Errorf("merge %d has %d parts", i, len(p))
		}
		*m = append(*m, [2]string{p[0], p[1]})
	}
	return nil
}

// parseMerges reads merges of the form "a b".
func parseMerges(lines []string) ([][2]string, error) {
	var out [][2]string
	for i, line := range lines {
		if strings.HasPrefix(line, "#version") {
			continue
		}
		a, b, ok := strings.Cut(line, " ")
		if !ok || strings.Contains(b, " ") {
			return nil, fmt.Errorf("merge %d is %q, want two parts", i, line)
		}
		out = append(out, [2]string{a, b})
	}
	return out, nil
}

// Parse reads a tokenizer.json. Errors are ErrFormat or ErrUnsupported and name the field.
func Parse(data []byte) (*Tokenizer, error) {
	var f fileJSON
	if err := json.Unmarshal(data, &f); err != nil {
		return nil, fmt.Errorf("%w: tokenizer.json: %v", ErrFormat, err)
	}
	model, err := parseModel(f.Model)
	if err != nil {
		return nil, err
	}
	t := &Tokenizer{model: model}
	if t.norm, err = parseNormalizer(f.Normalizer, "normalizer"); err != nil {
		return nil, err
	}
	if t.pre, err = parsePreTokenizer(f.PreTokenizer, "pre_tokenizer", nil); err != nil {
		return nil, err
	}
	if t.post, err = parsePostProcessor(f.PostProcessor, "post_processor", nil); err != nil {
		return nil, err
	}
	if t.decoders, err = parseDecoder(f.Decoder, "decoder", nil); err != nil {
		return nil, err
	}
	t.finish(f.AddedTokens)
	return t, nil
}

func parseModel(raw json.RawMessage) (*bpe, error) {
	if isNull(raw) {
		return nil, fmt.Errorf("%w: no model", ErrFormat)
	}
	var kind struct{ Type string }
	if err := fields(raw, &kind, "model"); err != nil {
		return nil, err
	}
	if kind.Type != "BPE" && kind.Type != "" {
		return nil, unsupported("model", kind.Type)
	}
	var f modelJSON
	if err := fields(raw, &f, "model"); err != nil {
		return nil, err
	}
	if f.Dropout != nil && *f.Dropout != 0 {
		return nil, fmt.Errorf("%w: model: dropout %v", ErrUnsupported, *f.Dropout)
	}
	vocab := make(map[string]int32, len(f.Vocab))
	for token, id := range f.Vocab {
		if id < 0 || id > math.MaxInt32 {
			return nil, fmt.Errorf("%w: model: token %q has id %d", ErrFormat, token, id)
		}
		vocab[token] = int32(id)
	}
	m, err := newBPE(vocab)
	if err != nil {
		return nil, err
	}
	text := func(s *string) string {
		if s == nil {
			return ""
		}
		return *s
	}
	m.prefix, m.suffix = text(f.Prefix), text(f.Suffix)
	m.fuseUnk, m.byteFallback, m.ignoreMerges = f.FuseUnk, f.ByteFallback, f.IgnoreMerges
	if f.UnkToken != nil {
		if m.unk = m.lookup(*f.UnkToken); m.unk < 0 {
			return nil, fmt.Errorf("%w: model: unk_token %q is not in the vocabulary", ErrFormat, *f.UnkToken)
		}
	}
	return m, m.setMerges(f.Merges)
}

// setMerges ranks merges by their order.
func (m *bpe) setMerges(pairs [][2]string) error {
	m.merges = make(map[uint64]merge, len(pairs))
	for i, p := range pairs {
		a, b := m.lookup(p[0]), m.lookup(p[1])
		if a < 0 || b < 0 || len(p[1]) < len(m.prefix) {
			return fmt.Errorf("%w: model: merge %d (%q and %q) is not of tokens in the vocabulary", ErrFormat, i, p[0], p[1])
		}
		id := m.lookup(p[0] + p[1][len(m.prefix):])
		if id < 0 {
			return fmt.Errorf("%w: model: merge %d makes %q, which is not in the vocabulary", ErrFormat, i, p[0]+p[1][len(m.prefix):])
		}
		m.merges[pairKey(a, b)] = merge{uint32(i), id}
	}
	return nil
}
