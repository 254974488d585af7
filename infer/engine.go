package infer

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"bhive/adapters"
	"bhive/infer/tokenizer"
)

// Engine runs requests against one model in common steps. Its methods are safe for concurrent use; everything on the device happens on
// the goroutine of Run.
//
// Life of a request: Submit checks it and leases its adapter's version; the loop queues it when the adapter is on the device; the
// scheduler admits its choices as blocks and rows allow; steps compute its prompt in chunks, then a token a step; each token read
// is turned into text and given to the Generation; at the end its blocks go back (full ones stay findable as cached prefixes), and
// with the last choice the lease.
type Engine struct {
	config    Config
	model     *Model
	pool      *adapters.Pool
	tokenizer *tokenizer.Tokenizer
	device    *Device

	run     *runner
	sched   *scheduler
	flights []*flight
	works   map[*work]struct{} // not done
	masks   masks              // that are being found
	besides besides            // background work
	now     func() time.Time

	meanwhile func() // while a step runs on a device of its own: uploads of adapters begin and end; nil without them

	wake chan struct{} // has a value when there may be something to do

	mu         sync.Mutex
	phase      enginePhase
	draining   bool
	idle       chan struct{} // closed when draining and nothing is left
	stopped    chan struct{} // closed when Run has returned
	order      uint64
	active     int            // works submitted and not done
	waiting    int            // of those, without a choice that ever ran
	lines      map[string]int // of those, by tenant
	inbox      []*work
	cancels    []cancellation
	calls      []*call
	background Background
	stats      Stats
}

type enginePhase uint8

const (
	phaseNew enginePhase = iota
	phaseOpen
	phaseRunning
	phaseStopped
)

type cancellation struct {
	*work
	reason FinishReason
}

type call struct {
	f    func() error
	err  error
	done chan struct{}
}

// New makes an engine over a loaded model. pool and device may be nil where there are no adapters; device is the pool's, and its stream
// the engine's. New acquires nothing. The pool's PoolConfig.Wake should call Engine.Wake.
func New(c Config, m *Model, pool *adapters.Pool, device *Device, t *tokenizer.Tokenizer) (*Engine, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	c = c.defaults()
	if most := m.Positions; c.MaxContext == 0 || c.MaxContext > most {
		c.MaxContext = most
	}
	if c.EOS == nil {
		c.EOS = m.Config.EOS
	}
	c.MaxTokens = max(min(c.MaxTokens, c.MaxContext*c.MaxSeqs), c.MaxSeqs)
	if c.KVBlocks > 0 || c.KVBytes > 0 {
		if c.KVBlocks > 0 {
			c.KVBytes = int64(c.KVBlocks) * int64(c.BlockTokens) * m.KVTokenBytes()
		}
		if c.KVBlocks, c.KVBytes = c.kvBlocks(c.KVBytes, m.KVTokenBytes()); c.KVBlocks == 0 {
			return nil, fmt.Errorf("engine configuration: KVBytes = %d is less than a block of %d tokens", c.KVBytes, c.BlockTokens)
		}
		c.MaxContext = min(c.MaxContext, c.KVBlocks*c.BlockTokens)
	} // else Open sees what is free
	return &Engine{config: c, model: m, pool: pool, device: device, tokenizer: t, works: map[*work]struct{}{}, lines: map[string]int{}, now: time.Now,
		masks:   masks{lanes: map[string]*lane{}},
		besides: besides{sharing: newSharing(c.TPOTTarget, c.TrainSlice)},
		wake:    make(chan struct{}, 1), idle: make(chan struct{}), stopped: make(chan struct{}),
		stats: Stats{Requests: map[FinishReason]int64{}}}, nil
}

// Open allocates the KV cache, activations and step records. It returns kernels.ErrNoMemory where they do not fit. With
// Config.MemoryUtilization it also sizes the KV cache, so that Submit comes after it.
func (e *Engine) Open() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.phase != phaseNew {
		return fmt.Errorf("opening the engine: %w", ErrClosed)
	}
	r, err := openRunner(e.config, e.model, e.device)
	if err != nil {
		return err
	}
	e.config = r.config
	if e.pool != nil && !e.model.Backend.Info().CopyInPlace {
		e.meanwhile = func() { e.pool.Pump() }
	}
	e.run, e.sched, e.phase = r, newScheduler(e.config, e.config.KVBlocks), phaseOpen
	e.snapshot()
	return nil
}

// Close frees what Open allocated, after Run has returned. It may be called twice.
func (e *Engine) Close() {
	e.mu.Lock()
	phase := e.phase
	if phase == phaseRunning {
		e.mu.Unlock()
		panic("infer: an engine is closed while it runs")
	}
	e.phase = phaseStopped
	e.mu.Unlock()
	if phase == phaseNew || phase == phaseOpen {
		e.stop(ErrClosed)
		close(e.stopped)
	}
	if e.run != nil {
		e.run.close()
		e.run = nil
	}
}

// Submit queues a request. It does not wait. ctx is the client's: when it is done, the request is cancelled and everything it holds is
// freed. Errors: *ParamError, ErrPromptTooLong, ErrMaxTokens, ErrQueueFull, ErrClosed, and those of adapters.Pool.Acquire.
func (e *Engine) Submit(ctx context.Context, r Request) (*Generation, error) {
	vocab := e.model.Config.Vocab
	if err := r.Params.Validate(vocab); err != nil {
		return nil, err
	}
	if len(r.Prompt) == 0 {
		return nil, &ParamError{Param: "prompt", Message: "must have at least one token"}
	}
	limit := e.config.MaxContext
	if e.config.KVBlocks == 0 { // the KV cache is sized by Open
		return nil, fmt.Errorf("submitting before Open: %w", ErrClosed)
	}
	if len(r.Prompt) >= limit {
		return nil, fmt.Errorf("%w: it has %d tokens, and prompt and text together have room for %d", ErrPromptTooLong, len(r.Prompt), limit)
	}
	if n := r.Params.MaxTokens; n > limit-len(r.Prompt) {
		return nil, fmt.Errorf("%w: the model's maximum context length is %d tokens, the prompt has %d, and max_tokens asks for %d more", ErrMaxTokens, limit,
			len(r.Prompt), n)
	}
	w := &work{Request: r, at: time.Now(), prompt: make([]int32, len(r.Prompt))}
	for i, id := range r.Prompt {
		if id < 0 || id >= vocab {
			return nil, &ParamError{Param: "prompt", Message: fmt.Sprintf("token id %d at %d is not in the vocabulary [0, %d)", id, i, vocab)}
		}
		w.prompt[i] = int32(id)
	}
	w.gen = newGeneration(func() { e.cancel(w, FinishCancelled) })
	w.newSequences(limit)

	if err := e.accept(w); err != nil {
		return nil, err
	}
	e.mu.Lock()
	// Under the lock, so that a cancellation which comes at once is left after the work is, and finds it.
	w.end = append(w.end, stopper(context.AfterFunc(ctx, func() { e.cancel(w, FinishCancelled) })))
	if !r.Deadline.IsZero() {
		t := time.AfterFunc(time.Until(r.Deadline), func() { e.cancel(w, FinishDeadline) })
		w.end = append(w.end, stopper(t.Stop))
	}
	over := e.phase == phaseStopped
	if !over { // else whoever takes what is left in the inbox would end it too
		e.inbox = append(e.inbox, w)
	}
	e.mu.Unlock()
	if over { // Run ended in between and has not seen it
		e.discard(w)
		return nil, ErrClosed
	}
	e.Wake()
	return w.gen, nil
}

func stopper(f func() bool) func() { return func() { f() } }

// accept counts the work and leases its adapter.
func (e *Engine) accept(w *work) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.draining || e.phase == phaseStopped:
		return ErrClosed
	case e.full(w.Tenant):
		return fmt.Errorf("%w: %d requests wait, %d of them the tenant's", ErrQueueFull, e.waiting, e.lines[w.Tenant])
	}
	key := ""
	if !w.Adapter.Base() {
		if e.pool == nil {
			return fmt.Errorf("leasing the adapter: %w", adapters.ErrNotFound)
		}
		lease, err := e.pool.Acquire(w.Adapter)
		if err != nil {
			return fmt.Errorf("leasing the adapter: %w", err)
		}
		w.lease, key = lease, lease.Content()
	}
	w.root = rootKey(key, w.Tenant)
	e.order++
	w.order = e.order
	e.active++
	e.wait(w.Tenant, 1)
	return nil
}

// full reports whether the queue has no place for a tenant. A full one has for who has less than a share of it.
func (e *Engine) full(tenant string) bool {
	own, tenants := e.lines[tenant], len(e.lines)
	if own == 0 {
		tenants++
	}
	return e.waiting >= e.config.QueueLimit && own >= e.config.QueueLimit/tenants
}

// wait counts n requests of a tenant that wait. The mutex is held.
func (e *Engine) wait(tenant string, n int) {
	e.waiting += n
	if e.lines[tenant] += n; e.lines[tenant] == 0 {
		delete(e.lines, tenant)
	}
}

// cancel ends a work from another goroutine.
func (e *Engine) cancel(w *work, reason FinishReason) {
	e.mu.Lock()
	e.cancels = append(e.cancels, cancellation{w, reason})
	e.mu.Unlock()
	e.Wake()
}

// Do runs f on the engine's goroutine between two steps, and returns what it returns: the way to the device for anybody else. Where ctx
// is done first, f may still run.
func (e *Engine) Do(ctx context.Context, f func() error) error {
	c := &call{f: f, done: make(chan struct{})}
	e.mu.Lock()
	if e.phase == phaseStopped {
		e.mu.Unlock()
		return ErrClosed
	}
	e.calls = append(e.calls, c)
	e.mu.Unlock()
	e.Wake()
	select {
	case <-c.done:
		return c.err
	case <-ctx.Done():
		return ctx.Err()
	case <-e.stopped:
		select {
		case <-c.done:
			return c.err
		default:
			return ErrClosed
		}
	}
}

// Wake makes the engine look around: for adapters that have arrived, or background work that became ready. It never waits.
func (e *Engine) Wake() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// SetBackground says what runs when serving leaves time; nil: nothing.
func (e *Engine) SetBackground(b Background) {
	e.mu.Lock()
	e.background = b
	e.mu.Unlock()
	e.Wake()
}

// Drain refuses new requests from now on (ErrClosed) and waits until none is left, or ctx is done.
func (e *Engine) Drain(ctx context.Context) error {
	e.mu.Lock()
	e.draining = true
	e.leave(0)
	e.mu.Unlock()
	select {
	case <-e.idle:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting for running requests: %w", ctx.Err())
	}
}

// leave notes that n works are done. The mutex is held.
func (e *Engine) leave(n int) {
	e.active -= n
	if e.draining && e.active == 0 {
		select {
		case <-e.idle:
		default:
			close(e.idle)
		}
	}
}

// Stats is a snapshot.
func (e *Engine) Stats() Stats {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.stats
	s.Requests = make(map[FinishReason]int64, len(e.stats.Requests))
	for k, v := range e.stats.Requests {
		s.Requests[k] = v
	}
	return s
}

// Config is the configuration with its defaults filled in; MaxContext is at most what the KV cache holds.
func (e *Engine) Config() Config {
	c := e.config
	c.EOS = slices.Clone(c.EOS)
	return c
}
