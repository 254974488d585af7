package grammar

import (
	"errors"
	"fmt"
)

// ErrSchema is what every error of Compile, Regex and Choice wraps: the grammar asked for cannot be made. Such an error is an *Error.
var ErrSchema = errors.New("the grammar cannot be compiled")

// Error says where in a schema something is wrong, unsupported, or such that no value can satisfy it.
type Error struct {
	Pointer string // JSON pointer into the schema, "" for its root
	Message string
}

func (e *Error) Error() string {
	at := e.Pointer
	if at == "" {
		return e.Message
	}
	return at + ": " + e.Message
}

// Unwrap gives ErrSchema.
func (e *Error) Unwrap() error { return ErrSchema }

func bad(pointer, format string, args ...any) error {
	return &Error{Pointer: pointer, Message: fmt.Sprintf(format, args...)}
}
