//go:build !cuda

package cuda

import (
	"fmt"

	"bhive/kernels"
)

// Probe says why no GPU can be used: this build has no CUDA.
func Probe() (device string, err error) {
	return "", fmt.Errorf("%w: built without the tag cuda", ErrUnavailable)
}

// Open fails: this build has no CUDA.
func Open(Config) (kernels.Backend, error) {
	_, err := Probe()
	return nil, err
}
