package redis

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"bhive/adapters"
	"bhive/adapters/storetest"
)

var ctx = context.Background()

// conformance runs the suite; each store has a prefix, and so a registry, of its own.
func conformance(t *testing.T, run func(*testing.T, func(testing.TB) adapters.Store), url string, o Options) {
	var n atomic.Int32
	mark := "?"
	if strings.Contains(url, mark) {
		mark = "&"
	}
	run(t, func(t testing.TB) adapters.Store {
		return openTest(t, fmt.Sprintf("%s%sprefix=test%d", url, mark, n.Add(1)), o)
	})
}

func TestConformance(t *testing.T) { conformance(t, storetest.Run, startServer(t).url(), Options{}) }

// Blobs of many chunks, opened through temporary files.
func TestConformanceSmallChunks(t *testing.T) {
	conformance(t, storetest.RunCases, startServer(t).url(), Options{ChunkBytes: 1000, SpoolBytes: 1, TempDir: t.TempDir()})
}
