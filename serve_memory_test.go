package main

import (
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
