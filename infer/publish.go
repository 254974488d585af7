package infer

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"bhive/kernels"
)

// token adds a token that was drawn to its sequence and publishes what may be shown.
func (e *Engine) token(q *sequence, info TokenInfo) {
	p := &q.Params
	now := time.Now()
	if q.first.IsZero() {
		q.first = now
	}
	q.last = now
	q.tokens = append(q.tokens, int32(info.ID))
	e.mu.Lock()
	e.stats.GeneratedTokens++
	e.mu.Unlock()
	check := q.generated() > p.MinTokens || p.MinTokens == 0
	switch {
	case !p.IgnoreEOS && slices.Contains(e.config.EOS, info.ID):
		e.stopAt(q, info, "", check)
		return
	case slices.Contains(p.StopTokens, info.ID):
		e.stopAt(q, info, strconv.Itoa(info.ID), check)
		return
	}
	s := q.out.add(info, check)
	switch {
	case s.stop != "":
		e.show(q, s, FinishStop, s.stop)
	case len(q.tokens) >= q.limit:
		e.show(q, s, "", "")
		e.end(q, FinishLength, "")
	default:
		e.show(q, s, "", "")
		if q.constraint != nil {
			e.advance(q, info.ID)
		}
	}
}

// stopAt ends a choice at an end-of-text or stop token, which is part of the text with IncludeStop alone.
func (e *Engine) stopAt(q *sequence, info TokenInfo, stop string, check bool) {
	if q.Params.IncludeStop {
		s := q.out.add(info, check)
		if s.stop != "" {
			e.show(q, s, FinishStop, s.stop)
			return
		}
		e.show(q, s, "", "")
	}
	e.end(q, FinishStop, stop)
}

// end ends a choice that is not done, showing the text that was held back.
func (e *Engine) end(q *sequence, reason FinishReason, stop string) {
	if q.phase == done {
		return
	}
	var s shown
	if q.out != nil {
		s = q.out.end(true)
		if s.stop != "" && reason != FinishCancelled && reason != FinishDeadline {
			reason, stop = FinishStop, s.stop
		}
	}
	e.show(q, s, reason, stop)
}

// show pushes a delta, and with a reason ends the choice.
func (e *Engine) show(q *sequence, s shown, reason FinishReason, stop string) {
	d := Delta{Index: q.index, Text: s.text, Tokens: s.tokens, FinishReason: reason, StopReason: stop, Usage: q.usage()}
	if q.Params.PromptLogprobs && q.index == 0 && !q.promptShown && (q.generated() > 0 || reason != "") {
		q.promptShown = true
		d.Prompt = q.prompts
		if d.Prompt == nil && reason != FinishCancelled && reason != FinishDeadline { // a prompt of one token
			d.Prompt = []TokenInfo{e.tokenInfo(q.prompt[0])}
		}
	}
	if reason != "" || d.Text != "" || len(d.Tokens) > 0 || d.Prompt != nil {
		q.gen.push(d)
	}
	if reason != "" {
		e.finish(q, reason)
		if q.left == 0 {
			e.release(q.work, nil)
		}
	}
}

// finish takes a sequence out of everything and accounts for it.
func (e *Engine) finish(q *sequence, reason FinishReason) {
	if e.sched == nil { // closed before Open
		q.phase = done
	} else {
		e.sched.finish(q)
	}
	q.left--
	e.mu.Lock()
	e.stats.Requests[reason]++
	e.mu.Unlock()
	if e.config.Observer == nil {
		return
	}
	now := time.Now()
	info := RequestInfo{ID: q.ID, Tenant: q.Tenant, Index: q.index, Reason: reason, Usage: q.usage(), Queue: now.Sub(q.at), Total: now.Sub(q.at),
		Preempted: q.preempted}
	if !q.started.IsZero() {
		info.Queue = q.started.Sub(q.at)
	}
	if !q.first.IsZero() {
		info.FirstToken = q.first.Sub(q.at)
		if n := q.generated(); n > 1 {
			info.PerToken = q.last.Sub(q.first) / time.Duration(n-1)
		}
	}
	e.config.Observer.ObserveFinish(info)
}

// fail ends all choices of a work that are not done.
func (e *Engine) fail(w *work, err error) {
	if w.left == 0 {
		return
	}
	for _, q := range w.seqs {
		if q.phase != done {
			e.finish(q, ReasonError)
		}
	}
	e.release(w, err)
}

// release gives back what a work holds, when all its choices are done. The statistics that whoever waits for the end sees hold it.
func (e *Engine) release(w *work, err error) {
	delete(e.works, w)
	if e.sched != nil {
		e.publishStats()
	}
	e.settle(w, err)
}

// settle gives a work's lease and its place in the queue back, and ends it towards its client.
func (e *Engine) settle(w *work, err error) {
	for _, f := range w.end {
		f()
	}
	if w.lease != nil {
		w.lease.Release()
	}
	e.mu.Lock()
	if !w.seqs[0].counted {
		e.wait(w.Tenant, -1)
	}
	e.mu.Unlock()
	w.gen.finish(err) // behind that, so that whoever has seen the end finds a place in the queue; before Drain ends
	e.mu.Lock()
	e.leave(1)
	e.mu.Unlock()
}

// discard ends a work that the loop has not seen.
func (e *Engine) discard(w *work) { e.settle(w, ErrClosed) }

// stop fails everything, when the loop has ended or will not begin.
func (e *Engine) stop(err error) {
	e.mu.Lock()
	e.phase = phaseStopped
	inbox := e.inbox
	e.inbox, e.calls, e.cancels = nil, nil, nil
	e.mu.Unlock()
	for _, w := range inbox {
		e.works[w] = struct{}{}
	}
	for w := range e.works {
		e.fail(w, err)
	}
	if e.sched != nil {
		e.publishStats()
	}
}

// tokenInfo is a token without logprobs.
func (e *Engine) tokenInfo(id int32) TokenInfo {
	b := e.tokenizer.TokenBytes(int(id))
	return TokenInfo{ID: int(id), Text: strings.ToValidUTF8(string(b), "\uFFFD"), Bytes: b}
}

// scored is a token with what row of a step's results says of it.
func (e *Engine) scored(q *sequence, id int32, out *results, row int) TokenInfo {
	t := e.tokenInfo(id)
	t.Logprob, t.Rank = out.logprob[row], int(out.rank[row])
	for i := range max(q.Params.Logprobs, 0) {
		at := row*kernels.MaxTopLogprobs + i
		if out.topID[at] < 0 {
			break
		}
		top := e.tokenInfo(out.topID[at])
		t.Top = append(t.Top, TokenLogprob{ID: top.ID, Text: top.Text, Bytes: top.Bytes, Logprob: out.top[at]})
	}
	return t
}
