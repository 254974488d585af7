//go:build !linux

package local

import "os"

// beginWriting does nothing: the sync writes all.
func beginWriting(*os.File, int64, int64) {}
