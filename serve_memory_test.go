package main

import (
	"log/slog"
	"math"
	"strings"
	"testing"

	"bhive/kernels"

	"github.com/google/go-cmp/cmp"
)

func TestServeMemory(t *testing.T) {
	const gib = 1 << 30
	gpu, cpu := kernels.Info{MemoryTotal: 80 * gib}, kernels.Info{MemoryTotal: 8 * gib, CopyInPlace: true}
	for name, x := range map[string]struct {
		c    serveCmd
		info kernels.Info
		want serveMemory
	}{
		"GPU":            {serveCmd{KVMiB: -1, Utilization: 0.9}, gpu, serveMemory{utilization: 0.9, adapters: 8 * gib, inUse: 7 * gib}},
		"GPU, all given": {serveCmd{KVMiB: 1024, AdapterMiB: 2048, Utilization: 0.9}, gpu, serveMemory{kv: gib, adapters: 2 * gib, inUse: 2*gib - gib/4}},
		"CPU":            {serveCmd{KVMiB: -1, Utilization: 0.9}, cpu, serveMemory{kv: gib / 2, adapters: gib, inUse: gib, later: gib}},
		"CPU, what is left": {serveCmd{KVMiB: 0, AdapterMiB: 100, Utilization: 0.5}, cpu,
			serveMemory{utilization: 0.5, adapters: 100 << 20, inUse: 100 << 20, later: 100 << 20}},
	} {
		if diff := cmp.Diff(x.want, x.c.memory(x.info), cmp.AllowUnexported(serveMemory{})); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

// TestMiBThatWrap: sizes that are no number of bytes are refused; 2^44 MiB were 0 bytes, and so no quota at all.
func TestMiBThatWrap(t *testing.T) {
	for _, mib := range []int64{1 << 43, 1 << 44, 1<<44 + 1, math.MaxInt64} {
		for flag, c := range map[string]*serveCmd{"--quota-mib": {Quota: quotaFlags{MiB: mib}}, "--kv-mib": {KVMiB: mib}, "--adapter-mib": {AdapterMiB: mib}, "--adapter-host-mib": {HostMiB: mib}} {
			c.AdapterSlots, c.Data = 1, t.TempDir()
			if err := c.Run(t.Context(), slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), flag+" must be at most") {
				t.Errorf("%s %d: %v", flag, mib, err)
			}
		}
		if err := (&planCmd{HostMiB: mib}).Run(); err == nil || !strings.Contains(err.Error(), "--adapter-host-mib must be at most") {
			t.Errorf("plan of %d MiB: %v", mib, err)
		}
	}
}
