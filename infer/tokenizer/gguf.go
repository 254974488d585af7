package tokenizer

import (
	"fmt"
	"slices"
	"strings"
	"unicode"

	"golang.org/x/text/unicode/norm"
)

// GGUFVocab is the tokenizer in a GGUF file's metadata (keys tokenizer.ggml.*).
type GGUFVocab struct {
	Model      string    // model: "gpt2" (bytes) or "llama" (SentencePiece by scores)
	Pre        string    // pre: the split pattern's name (gpt2 only)
	Tokens     []string  // tokens, by id
	Merges     []string  // merges, "a b" (gpt2 only)
	TokenTypes []int32   // token_type by id: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte; may be empty
	Scores     []float32 // scores by id, higher merges first (llama only)

	BOS, EOS, Pad, Unk *int  // ids, nil where the file names none
	AddBOS             *bool // add_bos_token: Encode with addSpecial begins with BOS; nil where the file does not say: as in llama.cpp
	AddEOS             bool  // add_eos_token: and ends with EOS
	AddSpacePrefix     bool  // add_space_prefix (llama only; true where the file does not say)
}

const (
	typeUnknown = 2
	typeControl = 3
	typeUser    = 4
	typeUnused  = 5
	typeByte    = 6
)

// preScheme is what a split pattern's name in a GGUF file stands for.
type preScheme struct {
	patterns     []string // applied one after the other, matches isolated
	nfc          bool
	ignoreMerges bool
	bos          bool // texts begin with BOS where the file does not say
}

// preSchemeOf knows the names that llama.cpp writes for patterns whose original is known here.
func preSchemeOf(name string) (preScheme, bool) {
	switch name {
	case "gpt-2", "phi-2", "mpt", "olmo", "jina-en", "jina-es", "jina-de", "roberta-bpe", "gigachat":
		return preScheme{patterns: []string{patternGPT2}}, true
	case "smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b":
		return preScheme{patterns: []string{`\p{N}`, patternGPT2}}, true
	case "llama3", "llama-v3", "llama-bpe", "falcon3":
		return preScheme{patterns: []string{patternLlama3}, ignoreMerges: true, bos: true}, true
	case "dbrx", "smaug-bpe":
		return preScheme{patterns: []string{patternLlama3}}, true
	case "qwen2", "deepseek-r1-qwen":
		return preScheme{patterns: []string{patternQwen2}, nfc: true}, true
	case "stablelm2", "hunyuan":
		return preScheme{patterns: []string{patternQwen2}}, true
	case "tekken":
		return preScheme{patterns: []string{patternTekken}, ignoreMerges: true, bos: true}, true
	case "gpt-4o":
		return preScheme{patterns: []string{patternO200k}, ignoreMerges: true}, true
	case "default", "":
		return preScheme{patterns: []string{`[\p{P}\$\+<=>\^~\|]+`, patternGPT2, `\p{N}+`, `[0-9][0-9][0-9]`}}, true
	}
	return preScheme{}, false
}

// FromGGUF makes a tokenizer of a GGUF file's metadata. Errors are ErrFormat or ErrUnsupported.
func FromGGUF(v GGUFVocab) (*Tokenizer, error) {
	if len(v.TokenTypes) != 0 && len(v.TokenTypes) != len(v.Tokens) {
		return nil, fmt.Errorf("%w: %d token types for %d tokens", ErrFormat, len(v.TokenTypes), len(v.Tokens))
	}
	for name, id := range map[string]*int{"bos": v.BOS, "eos": v.EOS, "padding": v.Pad, "unknown": v.Unk} {
		if id != nil && (*id < 0 || *id >= len(v.Tokens)) {
			return nil, fmt.Errorf("%w: %s token %d of %d tokens", ErrFormat, name, *id, len(v.Tokens))
		}
	}
	vocab := make(map[string]int32, len(v.Tokens))
	for id, token := range v.Tokens {
		token = lossy(token)
		if _, ok := vocab[token]; !ok {
			vocab[token] = int32(id)
		}
	}
	model, err := newBPE(vocab)
	if err != nil {
		return nil, err
	}
	t := &Tokenizer{model: model}
	switch v.Model {
	case "gpt2":
		err = t.ggufBytes(v)
	case "llama":
		err = t.ggufScores(v)
	default:
		return nil, fmt.Errorf("%w: GGUF tokenizer model %q", ErrUnsupported, v.Model)
	}
	if err != nil {
		return nil, err
	}
	edge := template{}
	if v.addBOS() && v.BOS != nil {
		edge = append(edge, *v.BOS)
	}
	edge = append(edge, -1)
	if v.AddEOS && v.EOS != nil {
		edge = append(edge, *v.EOS)
	}
	if len(edge) > 1 {
		t.post = []postProcessor{edge}
	}
	var added []addedToken
	for id, kind := range v.TokenTypes {
		if kind == typeControl || kind == typeUser || kind == typeUnknown {
			added = append(added, addedToken{Content: lossy(v.Tokens[id]), Special: kind != typeUser})
		}
	}
	t.finish(added)
	// A vocabulary may hold one text twice; every id keeps its own.
	for len(t.tokens) < len(v.Tokens) {
		t.tokens, t.has, t.special, t.bytes = append(t.tokens, ""), append(t.has, false), append(t.special, false), append(t.bytes, nil)
	}
	for id, token := range v.Tokens {
		if !t.has[id] {
			first, _ := t.ID(lossy(token))
			t.tokens[id], t.has[id], t.bytes[id] = t.tokens[first], true, t.bytes[first]
		}
	}
	return t, nil
}

// addBOS reports whether texts begin with BOS.
func (v *GGUFVocab) addBOS() bool {
	if v.AddBOS != nil {
		return *v.AddBOS
	}
	scheme, _ := preSchemeOf(v.Pre)
	return v.Model == "llama" || scheme.bos
}

// ggufBytes sets up BPE over bytes.
func (t *Tokenizer) ggufBytes(v GGUFVocab) error {
	scheme, ok := preSchemeOf(v.Pre)
	if !ok {
		return fmt.Errorf("%w: GGUF pre-tokenizer %q", ErrUnsupported, v.Pre)
	}
	pairs, err := parseMerges(v.Merges)
	if err != nil {
		return fmt.Errorf("%w: GGUF: %v", ErrFormat, err)
	}
	if err := t.model.setMerges(pairs); err != nil {
		return err
	}
	t.model.ignoreMerges = scheme.ignoreMerges
	if scheme.nfc {
		t.norm = unicodeForm(norm.NFC)
	}
	for _, pattern := range scheme.patterns {
		var m matcher = runeMatcher(unicode.IsNumber)
		if pattern != `\p{N}` {
			p := pattern
			if m, err = (&patternJSON{Regex: &p}).matcher("GGUF pre-tokenizer " + v.Pre); err != nil {
				return err
			}
		}
		t.pre = append(t.pre, splitter{m: m, behavior: "Isolated"})
	}
	t.pre = append(t.pre, newByteLevel(false, false))
	t.decoders = []decoder{func() stage { return &byteLevelStage{} }}
	return nil
}

const metaspaceRune = "\u2581"

// ggufScores sets up SentencePiece's BPE: two neighbours merge if together they are a token, the highest score first.
func (t *Tokenizer) ggufScores(v GGUFVocab) error {
	if len(v.Scores) != len(v.Tokens) {
		return fmt.Errorf("%w: %d scores for %d tokens", ErrFormat, len(v.Scores), len(v.Tokens))
	}
	m := t.model
	kind := func(id int) int32 {
		if len(v.TokenTypes) == 0 {
			return 1
		}
		return v.TokenTypes[id]
	}
	m.fuseUnk, m.byteFallback = true, true
	if v.Unk != nil {
		m.unk = int32(*v.Unk)
	}
	mergeable := func(id int32) bool {
		switch kind(int(id)) {
		case typeUnknown, typeControl, typeUnused, typeByte:
			return false
		}
		return v.Scores[id] == v.Scores[id] // not NaN
	}
	var order []int32
	for _, id := range m.vocab {
		if mergeable(id) {
			order = append(order, id)
		}
	}
	slices.SortFunc(order, func(a, b int32) int {
		switch x, y := v.Scores[a], v.Scores[b]; {
		case x > y:
			return -1
		case x < y:
			return 1
		}
		return int(a - b)
	})
	rank := uint32(0)
	for i, id := range order {
		if i > 0 && v.Scores[id] != v.Scores[order[i-1]] {
			rank = uint32(i)
		}
		token := m.tokens[id]
		if len(token) > 1024 {
			return fmt.Errorf("%w: token %d has %d bytes", ErrFormat, id, len(token))
		}
		for k := range token {
			if k == 0 {
				continue
			}
			a, b := m.lookup(token[:k]), m.lookup(token[k:])
			if a >= 0 && b >= 0 && mergeable(a) && mergeable(b) {
				m.merges[pairKey(a, b)] = merge{rank, id}
			}
		}
	}
	space := func(s string) string { return strings.ReplaceAll(s, " ", metaspaceRune) }
	t.norm = space
	if v.AddSpacePrefix {
		t.norm = normalizers(prepend(metaspaceRune), space)
	}
	t.decoders = []decoder{
		func() stage { return &replaceStage{m: literal(metaspaceRune), content: " "} },
		func() stage { return &byteFallbackStage{} },
		func() stage { return fuseStage{} },
	}
	if v.AddSpacePrefix {
		t.decoders = append(t.decoders, func() stage { return &stripStage{content: ' ', start: 1} })
	}
	return nil
}
