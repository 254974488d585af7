package chat

import (
	"fmt"
	"strings"
	"unicode"
)

// Span is a range of bytes of a rendered text.
type Span struct{ Start, End int }

// RenderWithMask renders a whole conversation and returns the ranges that are trained: of each assistant's message of weight 1 its
// content and the end-of-turn marker that follows it (not the white space behind the marker, which nobody generates).
//
// It renders the conversation's beginnings and wants each to be a prefix of the next; otherwise ErrNotPrefix. in's
// AddGenerationPrompt has no effect.
func (t *Template) RenderWithMask(in Input) (string, []Span, error) {
	all := in.Messages
	part := func(n int, prompt bool) (string, error) {
		in.Messages, in.AddGenerationPrompt = all[:n], prompt
		text, err := t.Render(in)
		if err != nil {
			return "", fmt.Errorf("rendering the first %d of %d messages: %w", n, len(all), err)
		}
		return text, nil
	}
	text, err := part(len(all), false)
	if err != nil {
		return "", nil, err
	}
	var spans []Span
	for i, m := range all {
		if m.Role != "assistant" || m.Weight != nil && *m.Weight == 0 {
			continue
		}
		before, err := part(i, true)
		if err != nil {
			return "", nil, err
		}
		through, err := part(i+1, false)
		if err != nil {
			return "", nil, err
		}
		if !strings.HasPrefix(through, before) || !strings.HasPrefix(text, through) {
			return "", nil, fmt.Errorf("%w: message %d", ErrNotPrefix, i)
		}
		turn := through[len(before):]
		end := len(strings.TrimRightFunc(turn, unicode.IsSpace))
		if k := strings.LastIndex(turn, m.Content); k >= 0 && m.Content != "" { // white space of the content stays
			end = max(end, k+len(m.Content))
		}
		if end > 0 {
			spans = append(spans, Span{len(before), len(before) + end})
		}
	}
	return text, spans, nil
}
