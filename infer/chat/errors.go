package chat

import (
	"errors"
	"fmt"
)

var (
	// ErrSyntax is returned by Parse and FromHF for a template that does not compile.
	ErrSyntax = errors.New("chat: template does not compile")
	// ErrNoTemplate is returned by FromHF where a checkpoint has no chat template.
	ErrNoTemplate = errors.New("chat: no chat template")
	// ErrTemplate is returned when a template cannot render a conversation; if the template itself refused it
	// (raise_exception), the error is a *RaisedError too.
	ErrTemplate = errors.New("chat: template failed")
	// ErrMessage is returned for a message, tool or argument that is not valid JSON or not of the expected shape.
	ErrMessage = errors.New("chat: malformed message")
	// ErrNotPrefix is returned by RenderWithMask when a turn renders differently once more follows and cannot be found in the whole
	// rendering either, so that no byte range belongs to it.
	ErrNotPrefix = errors.New("chat: template does not render turn by turn")

	// ErrTooMuch is returned by RenderWithMask for a conversation of so many trained turns, or such long ones, that finding them all would take minutes.
	ErrTooMuch = errors.New("chat: too many trained turns in one conversation; make several of it")
)

// RaisedError is a template's own refusal of a conversation. It is an ErrTemplate.
type RaisedError struct{ Message string }

func (e *RaisedError) Error() string   { return fmt.Sprintf("%v: %s", ErrTemplate, e.Message) }
func (e *RaisedError) Is(t error) bool { return t == ErrTemplate }
