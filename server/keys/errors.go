package keys

import "errors"

var (
	// ErrUnknown is returned by Find for a secret that is no key, or no longer one, and by Revoke for an id that there is not.
	ErrUnknown = errors.New("no such API key")
	// ErrLastAdmin is returned by Create for a first key that is not an administrator's, and by Revoke for the last one that is.
	ErrLastAdmin = errors.New("there must be an administrator's key")
	// ErrFull is returned by Create when there are as many keys as a registry holds.
	ErrFull = errors.New("too many API keys")
)

// FieldError names the field of a new key that is unusable.
type FieldError struct {
	Field   string
	Message string
}

// Error is error's.
func (e *FieldError) Error() string { return e.Field + ": " + e.Message }
