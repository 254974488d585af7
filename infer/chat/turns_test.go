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
	if _, spans, err := masked(tmpl, conversation(100, "b")); err != nil || len(spans) != 100 {
		t.Errorf("%d turns, %v", len(spans), err)
	}
	for _, in := range []Input{conversation(50_000, "b"), conversation(300, strings.Repeat("b", 100_000))} {
		if _, _, err := masked(tmpl, in); !errors.Is(err, ErrTooMuch) {
			t.Errorf("%d messages: %v", len(in.Messages), err)
		}
	}
	// Turns that nobody asks for are not looked for.
	stubborn, err := Parse(`{% if messages | length == 5 %}{{ raise_exception('no') }}{% endif %}{% for m in messages %}{{ m.content }}{% endfor %}`, Options{})
	if err != nil {
		t.Fatal(err)
	}
	_, spans, err := stubborn.RenderWithMask(conversation(100, "b"))
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, err := range spans {
		if found++; err != nil {
			t.Fatal(err)
		}
		if found == 2 {
			break
		}
	}
	if _, _, err := masked(stubborn, conversation(100, "b")); !errors.Is(err, ErrTemplate) {
		t.Errorf("a turn that cannot be rendered: %v", err)
	}
	untrained, zero := conversation(20_000, "b"), 0
	for i := range untrained.Messages[:39_000] {
		untrained.Messages[i].Weight = &zero
	}
	if _, _, err := masked(tmpl, untrained); !errors.Is(err, ErrTooMuch) {
		t.Errorf("many turns, of which some are trained: %v", err)
	}
}
