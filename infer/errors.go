package infer

import (
	"errors"

	"bhive/kernels"
)

var (
	// ErrQueueFull is returned by Submit when QueueLimit requests wait already, a share of them the tenant's.
	ErrQueueFull = errors.New("the queue is full")
	// ErrMaxTokens is returned by Submit when the prompt and Params.MaxTokens together exceed the context or the KV cache.
	ErrMaxTokens = errors.New("prompt and text together are too long")
	// ErrPromptTooLong is returned by Submit when a prompt leaves no room for a token in the context or in the KV cache.
	ErrPromptTooLong = errors.New("the prompt is too long")
	// ErrClosed is returned by Submit and Do when the engine drains or does not run.
	ErrClosed = errors.New("the engine is shutting down")
	// ErrStep is returned by Generation.Next when the step that computed the request failed.
	ErrStep = errors.New("a step of the engine failed")
	// ErrNoMemory is kernels.ErrNoMemory for those who do not see devices. It comes from Open, and wrapped with ErrStep or ErrAdapterLoad from
	// Generation.Next, where the device's memory did not do for that one request.
	ErrNoMemory = kernels.ErrNoMemory
	// ErrAdapterLoad is returned by Generation.Next when the request's adapter could not be brought to the device.
	ErrAdapterLoad = errors.New("the adapter could not be loaded")
)
