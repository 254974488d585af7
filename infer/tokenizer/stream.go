package tokenizer

// Stream decodes ids one at a time, for one goroutine.
type Stream struct {
	t           *Tokenizer
	p           pipe
	skipSpecial bool
}

// NewStream returns a stream for one list of ids. skipSpecial leaves special tokens out, as in Decode.
func (t *Tokenizer) NewStream(skipSpecial bool) *Stream {
	s := &Stream{t: t, skipSpecial: skipSpecial, p: pipe{stages: make([]stage, len(t.decoders))}}
	for i, d := range t.decoders {
		s.p.stages[i] = d()
	}
	return s
}

// Add takes the next id and returns the text that is certain since the last call: complete characters only, often "". Ids outside
// the vocabulary add nothing.
func (s *Stream) Add(id int) string {
	if !s.t.exists(id) || s.skipSpecial && s.t.special[id] {
		return ""
	}
	s.p.push(0, s.t.tokens[id], true)
	return s.p.take()
}

// Flush ends the list and returns what was held back; bytes that never became a character come as U+FFFD. Nothing may be added
// afterwards.
func (s *Stream) Flush() string {
	s.p.flush()
	return s.p.take()
}
