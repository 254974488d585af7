package local

import (
	"testing"

	"bhive/adapters"
	"bhive/adapters/storetest"
)

func openTest(t testing.TB) adapters.Store {
	t.Helper()
	s, err := Open(t.TempDir(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func TestConformance(t *testing.T) { storetest.Run(t, openTest) }
