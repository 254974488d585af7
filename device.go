package main

import (
	"fmt"
	"log/slog"

	"bhive/kernels"
	"bhive/kernels/cpu"
	"bhive/kernels/cuda"
)

// openDevice is the device that the flags hold (lent), or one that is opened.
func openDevice(f *modelFlags, log *slog.Logger) (be kernels.Backend, lent bool, err error) {
	if f.Backend != nil {
		return f.Backend, true, nil
	}
	be, err = openBackend(f, log)
	return be, false, err
}

// openBackend opens the device that the flags name; auto takes a GPU where one can be used and the form of the weights is kept there, and
// says in the log why not otherwise.
func openBackend(f *modelFlags, log *slog.Logger) (kernels.Backend, error) {
	working := kernels.BF16
	if f.Weights == "float32" {
		working = kernels.F32
	}
	onCPU := func() (kernels.Backend, error) { return cpu.Open(cpu.Config{Threads: f.Threads, Working: working}) }
	onGPU := func() (kernels.Backend, error) {
		if f.Weights == "int8" {
			return nil, fmt.Errorf("int8 weights are not on the GPU yet: %w", cuda.ErrUnavailable)
		}
		c := cuda.Config{Working: working, BatchInvariant: f.BatchInvariant}
		if f.GPU != nil {
			f.GPU(&c)
		}
		return cuda.Open(c)
	}
	switch f.Device {
	case "cpu":
		return onCPU()
	case "cuda":
		return onGPU()
	}
	if _, err := cuda.Probe(); err != nil {
		log.Info("device chosen", "device", "cpu", "why", err)
		return onCPU()
	}
	be, err := onGPU()
	if err != nil {
		log.Info("device chosen", "device", "cpu", "why", err)
		return onCPU()
	}
	log.Info("device chosen", "device", "cuda", "why", "a GPU can be used")
	return be, nil
}
