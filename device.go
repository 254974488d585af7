package main

import (
	"bhive/kernels"
	"bhive/kernels/cpu"
)

// openBackend opens the device that the flags name.
func openBackend(f *modelFlags) (kernels.Backend, error) {
	working := kernels.BF16
	if f.Weights == "float32" {
		working = kernels.F32
	}
	return cpu.Open(cpu.Config{Threads: f.Threads, Working: working})
}
