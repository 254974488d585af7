package cuda

import "time"

// Share is the part that one kind of kernel had in a profile.
type Share struct {
	Name  string // of the kernel, or what cuBLASLt multiplied
	Count int
	Time  time.Duration // on the device, together
}

// Profiler is a backend that can say which kernels take the time.
type Profiler interface {
	// Profile runs f and returns the shares of what it enqueued, the largest first. Kernels do not overlap meanwhile.
	Profile(f func() error) ([]Share, error)
}
