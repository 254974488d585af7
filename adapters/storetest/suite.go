// Package storetest holds every adapters.Store to its contract.
package storetest

import (
	"testing"

	"bhive/adapters"
)

// Run runs the whole conformance suite; open makes an empty store for one test.
func Run(t *testing.T, open func(t *testing.T) adapters.Store) { panic("to come") }
