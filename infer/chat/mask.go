package chat

import (
	"fmt"
	"iter"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Span is a range of bytes of a rendered text.
type Span struct{ Start, End int }

// RenderWithMask renders a whole conversation and gives the ranges that are trained, in order: of each assistant's message of weight 1 its
// content and the end-of-turn marker that follows it. The white space behind the marker is not trained: generation ends with
// the marker, so nobody ever draws what is behind it, and its gradient would only dilute the rest. (Reference losses that are computed
// with the line break in the labels stay comparable: they come with labels of their own, and do not pass through here.)
//
// A turn begins where the rendering of what is before it, with the generation prompt, ends: what the model is given when it
// writes that turn. Where a turn is rendered otherwise once more follows, as templates of thinking models drop the thoughts of
// earlier turns, it is looked for in the whole rendering, and what is there of it is trained: the answer, without the
// thoughts. Who wants the thoughts of every turn trained gives a conversation for each, ending with it. Where a turn cannot be found either, the error
// is ErrNotPrefix, with which the ranges end, and where they are too many to be looked for, ErrTooMuch. in's AddGenerationPrompt has no effect.
//
// A template may render the same messages otherwise when others follow. So each turn is looked for in renderings of all that is before it, and all of them
// take the square of their number. It is looked for when it is asked for: who needs the beginning of a long conversation stops there.
func (t *Template) RenderWithMask(in Input) (text string, spans iter.Seq2[Span, error], err error) {
	r := masking{t: t, in: in, all: in.Messages}
	if r.text, err = r.render(r.all, false); err != nil {
		return "", nil, err
	}
	if r.work() > maxMaskWork {
		return "", nil, fmt.Errorf("%w: %d messages", ErrTooMuch, len(r.all))
	}
	return r.text, r.turns, nil
}

// masking is one RenderWithMask.
type masking struct {
	t    *Template
	in   Input
	all  []Message
	text string // of the whole conversation
}

// maxMaskWork bounds what finding the trained turns takes, in messages rendered, 2 KB of text counting as one. That is some seconds, and a thousand turns.
const maxMaskWork = 2_000_000

// work is about what finding the trained turns takes: each takes two renderings of what is before it.
func (r *masking) work() int {
	messages := 0
	for i := range r.all {
		if r.all[i].trained() {
			messages += 2*i + 1
		}
	}
	each := len(r.text) / max(len(r.all), 1)
	return messages + messages/2048*each
}

func (m *Message) trained() bool { return m.Role == "assistant" && (m.Weight == nil || *m.Weight != 0) }

func (r *masking) render(messages []Message, prompt bool) (string, error) {
	r.in.Messages, r.in.AddGenerationPrompt = messages, prompt
	text, err := r.t.Render(r.in)
	if err != nil {
		return "", fmt.Errorf("rendering the first %d of %d messages: %w", len(messages), len(r.all), err)
	}
	return text, nil
}

// turns finds what is trained, turn by turn.
func (r *masking) turns(yield func(Span, error) bool) {
	at := 0
	for i, m := range r.all {
		if !m.trained() {
			continue
		}
		s, err := r.turn(i)
		if err == nil && s.Start < at {
			err = fmt.Errorf("%w: message %d", ErrNotPrefix, i)
		}
		if err != nil {
			yield(Span{}, err)
			return
		}
		if s.End == s.Start {
			continue
		}
		if at = s.End; !yield(s, nil) {
			return
		}
	}
}

// turn finds what is trained of message i.
func (r *masking) turn(i int) (Span, error) {
	before, err := r.render(r.all[:i], true)
	if err != nil {
		return Span{}, err
	}
	through, err := r.render(r.all[:i+1], false)
	if err != nil {
		return Span{}, err
	}
	if !strings.HasPrefix(through, before) || !strings.HasPrefix(r.text, through) {
		return r.search(i, before)
	}
	turn := through[len(before):]
	end := len(trimRight(turn))
	content := r.all[i].Content
	if k := strings.LastIndex(turn, content); k >= 0 && content != "" { // white space of the content stays
		end = max(end, k+len(content))
	}
	return Span{len(before), len(before) + end}, nil
}

// search finds message i in the whole text by a marker put behind its content: the text before the marker ends with what is rendered of
// the content, and what follows the marker where the message is the last one is the end of a turn.
func (r *masking) search(i int, before string) (Span, error) {
	failed := fmt.Errorf("%w: message %d", ErrNotPrefix, i)
	marker := "\ue000"
	for strings.Contains(r.text, marker) {
		marker += "\ue001"
	}
	content := r.all[i].Content
	if content == "" {
		return Span{}, failed
	}
	marked := slices.Clone(r.all)
	marked[i].Content += marker
	whole, err := r.render(marked, false)
	if err != nil {
		return Span{}, err
	}
	through, err := r.render(marked[:i+1], false)
	if err != nil {
		return Span{}, err
	}
	head, _, found := strings.Cut(whole, marker)
	_, tail, last := strings.Cut(through, marker)
	if !found || !last {
		return Span{}, failed
	}
	if !strings.HasPrefix(r.text, head) { // the template trims contents
		head, content = trimRight(head), trimRight(content)
	}
	tail = trimRight(tail)
	if !strings.HasPrefix(r.text, head+tail) {
		return Span{}, failed
	}
	start := len(before)
	if !strings.HasPrefix(head, before) {
		shown := commonSuffix(head, content)
		if len(shown) < len(content) { // of a content in part the beginning is not white space of its own
			shown = strings.TrimLeftFunc(shown, unicode.IsSpace)
		}
		if shown == "" {
			return Span{}, failed
		}
		start = len(head) - len(shown)
	}
	return Span{start, len(head) + len(tail)}, nil
}

func trimRight(s string) string { return strings.TrimRightFunc(s, unicode.IsSpace) }

// commonSuffix is the longest end that a and b share, in whole characters.
func commonSuffix(a, b string) string {
	n := 0
	for n < min(len(a), len(b)) && a[len(a)-1-n] == b[len(b)-1-n] {
		n++
	}
	for n > 0 && !utf8.RuneStart(b[len(b)-n]) {
		n--
	}
	return b[len(b)-n:]
}
