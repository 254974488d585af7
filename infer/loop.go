package infer

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"
)

// Run owns the device until ctx ends, and then fails what is still running with ErrClosed (see Drain). A sticky device error ends it
// early and is returned. It may be called once, after Open.
func (e *Engine) Run(ctx context.Context) error {
	e.mu.Lock()
	if e.phase != phaseOpen {
		e.mu.Unlock()
		return fmt.Errorf("running the engine: %w", ErrClosed)
	}
	e.phase = phaseRunning
	e.mu.Unlock()
	err := e.loop(ctx)
	for _, f := range e.flights { // nothing may be under way when memory is freed
		e.run.wait(f, nil)
	}
	e.flights = nil
	cause := err
	if cause == nil {
		cause = ErrClosed
	}
	e.stop(cause)
	close(e.stopped)
	return err
}

// loop is schedule → run → publish, until ctx ends.
func (e *Engine) loop(ctx context.Context) error {
	for ctx.Err() == nil {
		start := time.Now()
		e.takeInbox()
		e.takeMasks()
		copying := e.pool != nil && e.pool.Pump()
		e.takeAside()
		switch e.share() {
		case turnTaken:
			continue // whoever has come meanwhile goes first
		case turnHeld:
			if e.hold() {
				if err := e.collect(); err != nil {
					return err
				}
			}
			continue
		}
		p := e.sched.plan()
		if len(p.items) > 0 {
			e.launch(p, start)
		}
		if n := len(e.flights); n > 0 && (n == e.config.flights() || len(p.items) == 0) {
			if err := e.collect(); err != nil {
				return err
			}
			// Whoever waits for what was published runs now, not when the runtime takes a thread away from the next step's work.
			runtime.Gosched()
			continue
		}
		if len(p.items) > 0 {
			continue
		}
		if len(e.besides.running) > 0 {
			e.hold()
			continue
		}
		e.publishStats()
		var tick <-chan time.Time
		if copying {
			tick = time.After(200 * time.Microsecond)
		} else if len(e.sched.queue.aside) > 0 {
			tick = time.After(5 * time.Millisecond) // a fetch that fails need not wake
		}
		select {
		case <-e.wake:
		case <-tick:
		case <-ctx.Done():
		}
	}
	return nil
}

// takeInbox takes over what other goroutines have left.
func (e *Engine) takeInbox() {
	e.mu.Lock()
	inbox, cancels, calls := e.inbox, e.cancels, e.calls
	e.inbox, e.cancels, e.calls = nil, nil, nil
	e.mu.Unlock()
	for _, w := range inbox {
		e.works[w] = struct{}{}
		if w.Constrain != nil {
			e.findMasks(w)
			continue
		}
		e.sched.queue.aside = append(e.sched.queue.aside, w)
	}
	for _, c := range cancels {
		if _, ok := e.works[c.work]; ok {
			for _, q := range c.seqs {
				e.end(q, c.reason, "")
			}
		}
	}
	for _, c := range calls {
		c.err = c.f()
		close(c.done)
	}
}

// takeAside queues works whose adapter has arrived.
func (e *Engine) takeAside() {
	u := e.sched.queue
	if len(u.aside) == 0 {
		return
	}
	left := u.aside[:0]
	for _, w := range u.aside {
		if w.left == 0 {
			continue // it was cancelled
		}
		if w.lease != nil {
			select {
			case <-w.lease.Ready():
			default:
				left = append(left, w)
				continue
			}
			if err := w.lease.Err(); err != nil {
				e.fail(w, fmt.Errorf("%w: %w", ErrAdapterLoad, err))
				continue
			}
		}
		u.push(w.seqs[0], false)
		if e.config.NoPrefixCache {
			e.fork(w)
		}
	}
	clear(u.aside[len(left):])
	u.aside = left
}

// fork queues a work's further choices, which find the prompt's blocks in the prefix cache.
func (e *Engine) fork(w *work) {
	if w.forked {
		return
	}
	w.forked = true
	for i := len(w.seqs) - 1; i > 0; i-- {
		if q := w.seqs[i]; q.phase != done {
			e.sched.queue.push(q, true)
		}
	}
}

// launch enqueues a planned step.
func (e *Engine) launch(p plan, start time.Time) {
	f := &flight{plan: p, start: start}
	for _, it := range f.items {
		q := it.sequence
		if !q.prepared {
			e.prepare(q, f)
		}
		if q.constraint != nil && it.draw {
			f.keep = append(f.keep, e.run.uploadMask(q, e.config.EOS))
		}
	}
	f.begun = e.now()
	e.behind(f)
	e.run.launch(f)
	e.openSlice(f)
	f.launched()
	e.flights = append(e.flights, f)
}

// prepare sets up a sequence that was admitted.
func (e *Engine) prepare(q *sequence, f *flight) {
	q.prepared = true
	f.keep = append(f.keep, e.run.prepare(q, e.config.EOS)...)
	if !q.started.IsZero() {
		return
	}
	q.started = f.start
	q.cached = min(q.confirmed, len(q.prompt))
	q.out = &output{stream: e.tokenizer.NewStream(q.Params.SkipSpecial), stops: q.stops, include: q.Params.IncludeStop}
	e.mu.Lock()
	defer e.mu.Unlock()
	if q.index == 0 {
		e.wait(q.Tenant, -1)
		q.counted = true
		e.stats.PromptTokens += int64(len(q.prompt))
		e.stats.CachedTokens += int64(q.cached)
	}
}

// collect reads the oldest step and publishes its tokens. Its error is final.
func (e *Engine) collect() error {
	f := e.flights[0]
	e.flights = e.flights[:copy(e.flights, e.flights[1:])]
	meanwhile := e.meanwhile
	if len(e.besides.running) > 0 {
		meanwhile = e.beside
	}
	err := e.run.wait(f, meanwhile)
	read, took := time.Now(), e.stepped(f)
	if errors.Is(err, errSticky) {
		return err
	}
	for i := range f.items {
		it := &f.items[i]
		q := it.sequence
		if it.draw {
			q.pending--
		}
		if err != nil {
			q.inflight--
			e.fail(q.work, fmt.Errorf("%w: %w", ErrStep, err))
			continue
		}
		e.sched.confirm(*it)
		if q.index == 0 && len(q.seqs) > 1 && q.confirmed >= len(q.prompt) {
			e.fork(q.work)
		}
		e.publish(it, f.out)
	}
	e.observe(f, read, took)
	return nil
}

// publish gives out what a step drew for one sequence.
func (e *Engine) publish(it *item, out *results) {
	q := it.sequence
	if q.phase == done {
		return
	}
	row := it.row
	for j := range it.score {
		if len(q.prompts) == 0 {
			q.prompts = append(q.prompts, e.tokenInfo(q.prompt[0]))
		}
		if at := it.scoreAt + j + 1; at == len(q.prompts) {
			q.prompts = append(q.prompts, e.scored(q, q.prompt[at], out, row))
		}
		row++
	}
	if !it.draw {
		return
	}
	token := out.token[row]
	if token < 0 || int(token) >= e.run.vocab {
		e.sched.unpublish(q.work)
		e.fail(q.work, fmt.Errorf("%w: no token could be drawn; the model's logits are not finite", ErrStep))
		return
	}
	info := e.tokenInfo(token)
	if q.Params.Logprobs >= 0 {
		info = e.scored(q, token, out, row)
	}
	e.token(q, info)
}

// snapshot copies what the scheduler knows to the statistics. The mutex is held.
func (e *Engine) snapshot() {
	b, u := e.sched.blocks, e.sched.queue
	s := &e.stats
	s.Running, s.Waiting, s.WaitingAdapters = len(e.sched.run), u.waiting+len(u.aside)+e.masks.works, len(u.aside)
	s.KVBlocks, s.KVUsed, s.KVCached, s.KVBytes = len(b.refs), b.used(), b.idle.Len(), e.config.KVBytes
	s.MaxSeqs, s.MaxContext = e.config.MaxSeqs, e.config.MaxContext
	s.Preemptions = e.sched.preemptions
}

func (e *Engine) publishStats() {
	e.mu.Lock()
	e.snapshot()
	e.mu.Unlock()
}

// observe accounts for a step that was read.
func (e *Engine) observe(f *flight, read time.Time, took time.Duration) {
	now := time.Now()
	e.mu.Lock()
	e.snapshot()
	e.stats.Steps++
	e.stats.ComputedTokens += int64(f.tokens)
	e.stats.StepTime += took
	e.mu.Unlock()
	if e.config.Observer == nil {
		return
	}
	slots := map[int32]bool{}
	for _, it := range f.items {
		if s := it.slotNow; s >= 0 {
			slots[s] = true
		}
	}
	e.config.Observer.ObserveStep(StepInfo{Seqs: len(f.items), Tokens: f.tokens, PrefillTokens: f.prefill, DecodeSeqs: f.decodes,
		Adapters: len(slots), Duration: now.Sub(f.start), Host: f.host + now.Sub(read), Waited: f.waited, KVUsed: e.sched.blocks.used(), KVBlocks: len(e.sched.blocks.refs)})
}
