// Package local is the adapter store of a single process: blobs in content-addressed files, metadata in one
// bbolt database, in a data directory.
package local

import "bhive/adapters"

// Open opens (or creates) the data directory. It returns adapters.ErrStoreLocked while another process has it open.
func Open(dir string, o Options) (adapters.Store, error) { panic("to come") }

// Options of Open.
type Options struct {
	FeedLength int // changes that the feed reaches back; default: 10000
}
