package finetune

import (
	"errors"
	"fmt"
	"strings"
)

var (
	// ErrSpec is returned by Submit when a field of a job's specification is unusable; errors.As finds the *FieldError.
	ErrSpec = errors.New("unusable job specification")
	// ErrExamples is returned when examples cannot be trained on; errors.As finds the *ExamplesError with their lines.
	ErrExamples = errors.New("unusable examples")
	// ErrNotFound is returned when a tenant has no job of that id.
	ErrNotFound = errors.New("no such job")
	// ErrState is returned when a job's state does not allow what was asked for, as resuming one that is not paused.
	ErrState = errors.New("not possible in the job's state")
	// ErrBusy is returned by Submit when as many jobs wait, or as many of the tenant's have not ended, as the manager's limits allow.
	ErrBusy = errors.New("too many jobs")
	// ErrDevice is returned by Submit, and fails a stored job, where the model's device has no training ops.
	ErrDevice = errors.New("training is not on this device yet; run with --device cpu to train")
	// ErrClosed is returned once the manager is closed.
	ErrClosed = errors.New("the job manager is closed")
	// ErrCheckpoint is returned when a job's checkpoint cannot be read or belongs to something else.
	ErrCheckpoint = errors.New("unusable training checkpoint")
	// ErrDiverged is why a job failed: too many optimizer steps in a row had a gradient that was not finite.
	ErrDiverged = errors.New("training diverged")
)

// FieldError names the field of a JobSpec, by its JSON name, that is unusable.
type FieldError struct {
	Field   string
	Message string
}

func (e *FieldError) Error() string { return e.Field + ": " + e.Message }
func (e *FieldError) Unwrap() error { return ErrSpec }

func fieldErrorf(field, format string, args ...any) error {
	return &FieldError{Field: field, Message: fmt.Sprintf(format, args...)}
}

// LineError is one unusable example.
type LineError struct {
	Line    int    `json:"line"`            // from 1; for inline examples, the example's number from 1
	Field   string `json:"field,omitempty"` // where in the example, such as messages[2].role
	Message string `json:"message"`
}

func (e LineError) Error() string {
	if e.Field == "" {
		return fmt.Sprintf("line %d: %s", e.Line, e.Message)
	}
	return fmt.Sprintf("line %d: %s: %s", e.Line, e.Field, e.Message)
}

// ExamplesError lists the unusable examples of a file.
type ExamplesError struct {
	Param string      // training_file, validation_file or examples
	Lines []LineError // the first of them, by line
	Total int         // how many there are
}

func (e *ExamplesError) Error() string {
	var b strings.Builder
	if e.Param != "" {
		b.WriteString(e.Param + ": ")
	}
	for i, l := range e.Lines {
		if i > 0 {
			b.WriteString("; ")
		}
		b.WriteString(l.Error())
	}
	if more := e.Total - len(e.Lines); more > 0 {
		fmt.Fprintf(&b, "; and %d more", more)
	}
	return b.String()
}
func (e *ExamplesError) Unwrap() error { return ErrExamples }
