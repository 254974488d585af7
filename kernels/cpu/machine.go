package cpu

import (
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
)

// MachineMemory is what the process may have of the machine's memory, in bytes: all of it, or what a control group (a container's, a service's) leaves of it;
// 0 where that is not known.
func MachineMemory() int64 { return machineMemory("") }

// machineMemory is that with a root of the files.
func machineMemory(root string) int64 {
	total := totalMemory(root)
	groups, _ := os.ReadFile(root + "/proc/self/cgroup")
	for line := range strings.Lines(string(groups)) {
		of := strings.SplitN(strings.TrimSpace(line), ":", 3) // id, controllers, path
		if len(of) < 3 {
			continue
		}
		base, name := root+"/sys/fs/cgroup", "memory.max"
		if of[1] != "" { // version 1
			if !slices.Contains(strings.Split(of[1], ","), "memory") {
				continue
			}
			base, name = base+"/memory", "memory.limit_in_bytes"
		}
		// A group's parents limit it too. In a container the root is its own group, whatever its path.
		for dir := path.Clean("/" + of[2]); ; dir = path.Dir(dir) {
			text, _ := os.ReadFile(path.Join(base, dir, name))
			if n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64); err == nil && n > 0 && (total == 0 || n < total) {
				total = n
			}
			if dir == "/" {
				break
			}
		}
	}
	return total
}

// totalMemory is the machine's memory.
func totalMemory(root string) int64 {
	f, err := os.Open(root + "/proc/meminfo")
	if err != nil {
		return 0
	}
	defer f.Close()
	var kib int64
	if _, err := fmt.Fscanf(f, "MemTotal: %d kB", &kib); err != nil {
		return 0
	}
	return kib << 10
}
