package chat

import (
	"errors"
	"strings"
	"testing"
)

// TestManyTurns: finding each of many trained turns takes the square of their number, and has a bound.
func TestManyTurns(t *testing.T) {
	tmpl, _ := demo(t)
	conversation := func(n int, content string) (in Input) {
		for range n {
			in.Messages = append(in.Messages, Message{Role: "user", Content: "a"}, Message{Role: "assistant", Content: content})
		}
		return in
	}
	if _, spans, err := tmpl.RenderWithMask(conversation(100, "b")); err != nil || len(spans) != 100 {
		t.Errorf("%d turns, %v", len(spans), err)
	}
	for _, in := range []Input{conversation(50_000, "b"), conversation(300, strings.Repeat("b", 100_000))} {
		if _, _, err := tmpl.RenderWithMask(in); !errors.Is(err, ErrTooMuch) {
			t.Errorf("%d messages: %v", len(in.Messages), err)
		}
	}
	untrained, zero := conversation(20_000, "b"), 0
	for i := range untrained.Messages[:39_000] {
		untrained.Messages[i].Weight = &zero
	}
	if _, _, err := tmpl.RenderWithMask(untrained); !errors.Is(err, ErrTooMuch) {
		t.Errorf("many turns, of which some are trained: %v", err)
	}
}
