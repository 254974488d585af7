package infer

import (
	"context"

	"bhive/adapters"
	"bhive/infer/tokenizer"
)

// Engine runs requests against one model in common steps. Its methods are safe for concurrent use; everything on the device happens on
// the goroutine of Run.
type Engine struct{}

// New makes an engine over a loaded model; pool may be nil where there are no adapters. It acquires nothing.
// The pool's PoolConfig.Wake should call Engine.Wake.
func New(c Config, m *Model, pool *adapters.Pool, t *tokenizer.Tokenizer) (*Engine, error) { panic("to come") }

// Open allocates the KV cache, activations and step records. It returns kernels.ErrNoMemory where they do not fit.
func (e *Engine) Open() error { panic("to come") }

// Close frees what Open allocated, after Run has returned. It may be called twice.
func (e *Engine) Close() { panic("to come") }

// Run owns the device until ctx ends, and then fails what is still running with the context's error (see Drain). A sticky device
// error ends it early and is returned.
func (e *Engine) Run(ctx context.Context) error { panic("to come") }

// Submit queues a request. It does not wait. ctx is the client's: when it is done, the request is cancelled and everything it holds is
// freed. Errors: *ParamError, ErrPromptTooLong, ErrQueueFull, ErrClosed, and those of adapters.Pool.Acquire.
func (e *Engine) Submit(ctx context.Context, r Request) (*Generation, error) { panic("to come") }

// Do runs f on the engine's goroutine between two steps, and returns what it returns: the way to the device for anybody else.
func (e *Engine) Do(ctx context.Context, f func() error) error { panic("to come") }

// Wake makes the engine look around: for adapters that have arrived, or background work that became ready. It never waits.
func (e *Engine) Wake() { panic("to come") }

// SetBackground says what runs when serving leaves time; nil: nothing.
func (e *Engine) SetBackground(b Background) { panic("to come") }

// Drain refuses new requests from now on (ErrClosed) and waits until none is left, or ctx is done.
func (e *Engine) Drain(ctx context.Context) error { panic("to come") }

// Stats is a snapshot.
func (e *Engine) Stats() Stats { panic("to come") }

// Config is the configuration with its defaults filled in, MaxContext among them.
func (e *Engine) Config() Config { panic("to come") }

// Generation is the stream of a request's choices.
type Generation struct{}

// Next waits for what comes next, for any of the choices, and merges what has come meanwhile. After the last choice's FinishReason it returns io.EOF.
// It returns ctx's error where that is done first, and ErrStep, ErrAdapterLoad or ErrClosed where the request failed.
func (g *Generation) Next(ctx context.Context) (Delta, error) { panic("to come") }

// Close cancels what still runs. It may be called at any time, and twice.
func (g *Generation) Close() { panic("to come") }
