//go:build !unix

package checkpoint

import "os"

// mapFile reads the whole file where there is no mapping.
func mapFile(path string) (data []byte, release func() error, err error) {
	data, err = os.ReadFile(path)
	return data, func() error { return nil }, err
}
