package cpu

import (
	"os"
	"path/filepath"
	"testing"
)

// TestMachineMemory: where a control group leaves the process less than the machine has, that is what there is.
func TestMachineMemory(t *testing.T) {
	for name, c := range map[string]struct {
		groups string
		limits map[string]string // by path below /sys/fs/cgroup
		want   int64
	}{
		"no groups":            {"", nil, 64 << 20},
		"unlimited":            {"0::/a/b\n", map[string]string{"a/memory.max": "max\n", "a/b/memory.max": "max\n"}, 64 << 20},
		"a service":            {"0::/a/b\n", map[string]string{"a/memory.max": "max\n", "a/b/memory.max": "1048576\n"}, 1 << 20},
		"a parent":             {"0::/a/b\n", map[string]string{"a/memory.max": "1048576\n", "a/b/memory.max": "2097152\n"}, 1 << 20},
		"a container":          {"0::/\n", map[string]string{"memory.max": "3145728\n"}, 3 << 20},
		"version 1":            {"8:cpu,memory:/docker/id\n7:pids:/\n0::/\n", map[string]string{"memory/memory.limit_in_bytes": "5242880\n"}, 5 << 20},
		"version 1, unlimited": {"4:memory:/x\n", map[string]string{"memory/x/memory.limit_in_bytes": "9223372036854771712\n"}, 64 << 20},
		"more than there is":   {"0::/\n", map[string]string{"memory.max": "1099511627776\n"}, 64 << 20},
		"no numbers":           {"\n0:\nx::::\n0::..\n", map[string]string{"memory.max": "many"}, 64 << 20},
	} {
		root := t.TempDir()
		files := map[string]string{"proc/meminfo": "MemTotal:       65536 kB\nMemFree:        1 kB\n", "proc/self/cgroup": c.groups}
		for file, text := range c.limits {
			files["sys/fs/cgroup/"+file] = text
		}
		for file, text := range files {
			at := filepath.Join(root, file)
			if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(at, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if got := machineMemory(root); got != c.want {
			t.Errorf("%s: %d bytes, want %d", name, got, c.want)
		}
	}
	if got := machineMemory(t.TempDir()); got != 0 {
		t.Errorf("where nothing is known: %d bytes, want 0", got)
	}
}
