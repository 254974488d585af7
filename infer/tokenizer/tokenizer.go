package tokenizer

import (
	"strings"
)

// Tokenizer turns text into ids and back.
type Tokenizer struct {
	model   *bpe
	tokens  []string // by id, model and added tokens
	has     []bool   // by id
	special []bool   // by id
	bytes   [][]byte // by id, what a token stands for

	ids        map[string]int // added tokens' ids, which come before the model's
	asWritten  *addedSet      // added tokens looked for in the text as it is
	normalized *addedSet      // and in normalized text

	norm     normalizer
	pre      []preTokenizer
	post     []postProcessor
	decoders []decoder
}

// Encode returns the ids of a text. Added tokens in it are recognised, special ones too. addSpecial lets the post-processor
// add its tokens (a BOS, say).
func (t *Tokenizer) Encode(text string, addSpecial bool) []int {
	ids := t.encode(text, false)
	if addSpecial {
		for _, p := range t.post {
			ids = p.process(ids)
		}
	}
	return ids
}

// EncodeOrdinary is Encode without special tokens: what looks like one in the text is text, and none is added. Added tokens that
// are not special are still recognised.
func (t *Tokenizer) EncodeOrdinary(text string) []int { return t.encode(text, true) }

func (t *Tokenizer) encode(text string, ordinary bool) []int {
	text = lossy(text)
	ids := make([]int, 0, len(text)/3+4)
	add := func(a *addedToken) { ids = append(ids, a.id) }
	t.asWritten.cut(text, ordinary, func(start, end int) {
		part := t.norm.apply(text[start:end])
		t.normalized.cut(part, ordinary, func(a, b int) {
			ids = t.encodePiece(piece{part[a:b], start == 0 && a == 0}, ids)
		}, add)
	}, add)
	return ids
}

func (t *Tokenizer) encodePiece(p piece, ids []int) []int {
	if p.text == "" {
		return ids
	}
	if len(t.pre) == 0 {
		return t.model.encode(p.text, ids)
	}
	last := len(t.pre) - 1
	pieces := []piece{p}
	for _, step := range t.pre[:last] {
		var next []piece
		for _, p := range pieces {
			step.split(p, func(q piece) { next = append(next, q) })
		}
		pieces = next
	}
	for _, p := range pieces {
		t.pre[last].split(p, func(q piece) { ids = t.model.encode(q.text, ids) })
	}
	return ids
}

// Decode returns the text of ids, always UTF-8. skipSpecial leaves special tokens out. Ids outside the vocabulary are skipped.
func (t *Tokenizer) Decode(ids []int, skipSpecial bool) string {
	s := t.NewStream(skipSpecial)
	for _, id := range ids {
		if t.exists(id) && !(skipSpecial && t.special[id]) {
			s.p.push(0, t.tokens[id], true)
		}
	}
	return s.Flush()
}

func (t *Tokenizer) exists(id int) bool { return id >= 0 && id < len(t.has) && t.has[id] }

// TokenBytes returns the bytes that a token stands for inside a text, nil for an id outside the vocabulary. They need not be
// UTF-8. What a decoder does at the ends of a whole text (the stripped space of SentencePiece) is not done. The caller must not
// write to them.
func (t *Tokenizer) TokenBytes(id int) []byte {
	if !t.exists(id) {
		return nil
	}
	return t.bytes[id]
}

// TokenString returns a token as it stands in the vocabulary, "" for an id outside it.
func (t *Tokenizer) TokenString(id int) string {
	if !t.exists(id) {
		return ""
	}
	return t.tokens[id]
}

// ID returns the id of a token as it stands in the vocabulary.
func (t *Tokenizer) ID(token string) (int, bool) {
	if id, ok := t.ids[token]; ok {
		return id, true
	}
	id, ok := t.model.vocab[token]
	return int(id), ok
}

// VocabSize is the highest id plus one, added tokens included. The model's logits may be wider.
func (t *Tokenizer) VocabSize() int { return len(t.tokens) }

// IsSpecial tells whether an id is a special token.
func (t *Tokenizer) IsSpecial(id int) bool { return t.exists(id) && t.special[id] }

// finish builds what follows from the model, the added tokens (in order) and the steps.
func (t *Tokenizer) finish(added []addedToken) {
	m := t.model
	if n := len(t.pre); n > 0 {
		var levels []*byteLevel
		for _, p := range t.pre {
			if b, ok := p.(*byteLevel); ok {
				levels = append(levels, b)
			}
		}
		if b, ok := t.pre[n-1].(*byteLevel); ok && len(levels) == 1 && m.takeBytes() {
			b.plain = true
			if n > 1 && !b.prefixSpace && b.scan == nil {
				t.pre = t.pre[:n-1] // nothing left to do
			}
		}
	}
	t.tokens = append([]string(nil), m.tokens...)
	t.has = append([]bool(nil), m.has...)
	t.special = make([]bool, len(t.tokens))
	t.addTokens(added)
	t.bytes = make([][]byte, len(t.tokens))
	stages := t.NewStream(false).p.stages
	for id, token := range t.tokens {
		t.bytes[id] = tokenBytes(token, stages)
	}
	if len(t.decoders) == 0 {
		t.decoders = []decoder{func() stage { return &joinStage{} }}
	}
}

// addTokens gives ids to the added tokens: the vocabulary's where it has them, otherwise the next free one.
func (t *Tokenizer) addTokens(added []addedToken) {
	m := t.model
	t.ids, t.asWritten, t.normalized = map[string]int{}, newAddedSet(), newAddedSet()
	special := map[string]bool{}
	for _, a := range added {
		special[a.Content] = special[a.Content] || a.Special
	}
	latest := map[string]*addedToken{}
	top := -1
	for i := range added {
		a := &added[i]
		if a.Content == "" {
			continue
		}
		id, ok := t.ID(a.Content)
		if !ok {
			id = max(len(m.vocab), top+1)
		}
		top = max(top, id)
		a.id, a.Special = id, special[a.Content]
		for id >= len(t.tokens) {
			t.tokens, t.has, t.special = append(t.tokens, ""), append(t.has, false), append(t.special, false)
		}
		t.tokens[id], t.has[id], t.special[id] = a.Content, true, a.Special
		t.ids[a.Content] = id
		latest[a.Content] = a
	}
	for i := range added { // special ones first
		if a := &added[i]; a == latest[a.Content] && a.Special {
			t.look(a)
		}
	}
	for i := range added {
		if a := &added[i]; a == latest[a.Content] && !a.Special {
			t.look(a)
		}
	}
}

func (t *Tokenizer) look(a *addedToken) {
	if a.Normalized {
		t.normalized.add(t.norm.apply(a.Content), a)
	} else {
		t.asWritten.add(a.Content, a)
	}
}

// tokenBytes applies to one token the decoder stages that act on each.
func tokenBytes(token string, stages []stage) []byte {
	for _, s := range stages {
		switch s := s.(type) {
		case *byteLevelStage:
			b, _ := appendAlphabet(nil, token)
			return b
		case *byteFallbackStage:
			if b, ok := fallbackByte(token); ok {
				return []byte{b}
			}
		case *replaceStage:
			token = replaceAll(token, s.m, s.content)
		case *metaspaceStage:
			token = strings.ReplaceAll(token, s.replacement, " ")
		}
	}
	return []byte(token)
}
