package infer

import "time"

// Background is work that shares the device with serving at the lowest priority: training. Its methods are called on the engine's
// goroutine, so a slice may call ops of the backend, on a stream of its own or the engine's.
type Background interface {
	// Ready reports whether there is a slice to run now. It is asked after every step and must be quick.
	Ready() bool
	// Slice runs one slice, and no more of further slices than fit in the budget, to its end on the device.
	Slice(budget time.Duration)
}
