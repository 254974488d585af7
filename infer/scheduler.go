package infer

import "slices"

// scheduler decides what the next step computes. It knows blocks and tokens, and nothing of devices.
//
// In a step come first the sequences that decode, oldest first, then prefill in chunks: that which runs, then that which is admitted. A
// sequence is admitted when all blocks of its tokens are there at once, so that only decoding can run out of blocks; then the youngest
// sequence gives its own back and is computed again later, what it had generated now being part of its prompt.
type scheduler struct {
	config Config
	blocks *blocks
	rows   []int       // free rows of the sampler state
	run    []*sequence // oldest first
	queue  *queue

	preemptions int64
	stuck       bool // what waits had no place in the last step
}

// item is one sequence's part of a step.
type item struct {
	*sequence
	from, n int   // tokens computed
	score   int   // rows that take the logprob of the prompt's next token, for the first score tokens from scoreAt on
	scoreAt int   // position
	draw    bool  // the last token's row draws
	epoch   int   // of the sequence when it was planned
	row     int   // first row in the step
	slotNow int32 // adapter slot: the lease may be gone when the step is read
}

// plan is a step to be.
type plan struct {
	items                []item
	tokens, rows, scores int
	prefill, decodes     int
}

func newScheduler(c Config, nBlocks int) *scheduler {
	s := &scheduler{config: c, blocks: newBlocks(nBlocks), queue: newQueue()}
	for i := c.MaxSeqs - 1; i >= 0; i-- {
		s.rows = append(s.rows, i)
	}
	return s
}

// plan chooses the next step; it is empty where nothing can be computed now.
func (s *scheduler) plan() plan {
	var p plan
	for i := 0; i < len(s.run); i++ {
		if q := s.run[i]; q.total()-q.computed == 1 && !q.waits() && !q.scores() && s.grow(q) {
			s.add(&p, q, 1)
			p.decodes++
		}
	}
	for _, q := range s.run {
		if n := q.total() - q.computed; n > 1 || n == 1 && q.scores() {
			s.chunk(&p, q)
		}
	}
	for len(s.run) < s.config.MaxSeqs && p.tokens < s.config.MaxTokens {
		q := s.queue.next()
		if q == nil || !s.admit(q) {
			break
		}
		s.queue.admitted(q)
		s.chunk(&p, q)
	}
	s.stuck = p.prefill == 0 && s.queue.waiting > 0
	return p
}

// prefills reports whether a running sequence has more than its next token to compute.
func (s *scheduler) prefills() bool {
	return slices.ContainsFunc(s.run, func(q *sequence) bool { return q.total()-q.computed > 1 || q.scores() })
}

// chunk adds as much of q's prefill as the budget leaves.
func (s *scheduler) chunk(p *plan, q *sequence) {
	n := q.total() - q.computed
	if q.held { // it was preempted; the last token waits for the mask
		n--
	}
	n = min(n, s.config.MaxTokens-p.tokens)
	if q.scores() {
		n = min(n, s.config.PromptRows-p.scores)
	}
	if n > 0 {
		s.add(p, q, n)
		p.prefill += n
	}
}

func (s *scheduler) add(p *plan, q *sequence, n int) {
	it := item{sequence: q, from: q.computed, n: n, epoch: q.epoch, row: p.rows, slotNow: q.slot()}
	if q.scores() {
		it.scoreAt = max(q.forced, q.computed)
		it.score = max(min(q.computed+n, len(q.prompt)-1)-it.scoreAt, 0)
		q.forced = it.scoreAt + it.score
	}
	q.computed += n
	it.draw = q.computed == q.total() && q.total() < q.limit
	p.rows += it.score
	p.scores += it.score
	if it.draw {
		p.rows++
	}
	p.tokens += n
	p.items = append(p.items, it)
	s.queue.charge(q.Tenant, n)
}

// launched notes that a step is enqueued: its draws are tokens to come, row i of the step being i.
func (p *plan) launched() {
	for _, it := range p.items {
		it.inflight++
		if it.draw {
			it.pending++
			it.feed = it.row + it.score
		}
	}
}

// grow sees to it that q has a block for its next token, preempting the youngest sequences for it, in the end q itself.
func (s *scheduler) grow(q *sequence) bool {
	for q.computed >= len(q.table)*s.config.BlockTokens {
		if id, ok := s.blocks.take(); ok {
			q.table = append(q.table, id)
			continue
		}
		victim := s.run[len(s.run)-1]
		s.preempt(victim)
		if victim == q {
			return false
		}
	}
	return true
}

// admit gives q its blocks and a sampler row, if there are enough.
func (s *scheduler) admit(q *sequence) bool {
	size := s.config.BlockTokens
	usable := 0
	q.forced = max(len(q.prompts)-1, 0)
	if !s.config.NoPrefixCache && !q.scores() {
		q.keys = chain(q.root, q.keys, q.tokens, size)
		usable = min(len(q.keys), (len(q.tokens)-1)/size) // the last token is computed: its logits are wanted
	}
	found, idle := s.blocks.prefix(q.keys[:usable])
	need := (len(q.tokens)+size-1)/size - found
	spare := s.blocks.available() - idle
	if len(s.run) > 0 {
		spare -= int(s.config.Watermark * float64(len(s.blocks.refs)))
	}
	if need > spare {
		return false
	}
	q.table = append(q.table[:0], s.blocks.match(q.keys[:usable])...)
	for range need {
		id, ok := s.blocks.take()
		if !ok {
			panic("infer: fewer KV blocks than counted")
		}
		q.table = append(q.table, id)
	}
	q.computed = found * size
	q.confirmed, q.published = q.computed, found
	q.row = s.rows[len(s.rows)-1]
	s.rows = s.rows[:len(s.rows)-1]
	q.phase = running
	at, _ := slices.BinarySearchFunc(s.run, q, func(a, b *sequence) int {
		if a.olderThan(b) {
			return -1
		}
		return 1
	})
	s.run = slices.Insert(s.run, at, q)
	return true
}

// confirm notes that a step's part was computed, and lets others find the full blocks.
func (s *scheduler) confirm(it item) {
	q := it.sequence
	q.inflight--
	if q.phase != running || q.epoch != it.epoch {
		return
	}
	q.confirmed = max(q.confirmed, it.from+it.n)
	if s.config.NoPrefixCache {
		return
	}
	full := min(q.confirmed, len(q.tokens)) / s.config.BlockTokens
	if q.published >= full {
		return
	}
	q.keys = chain(q.root, q.keys, q.tokens, s.config.BlockTokens)
	for ; q.published < full; q.published++ {
		s.blocks.publish(q.table[q.published], q.keys[q.published])
	}
}

// unpublish keeps what a work's sequences have computed from others: K and V that are no numbers would fail whoever shares them.
func (s *scheduler) unpublish(w *work) {
	for _, q := range w.seqs {
		for _, id := range q.table[:min(q.published, len(q.table))] {
			s.blocks.unpublish(id)
		}
	}
}

// preempt takes everything from a running sequence and queues it again, ahead of those that have not run.
func (s *scheduler) preempt(q *sequence) {
	s.drop(q)
	q.phase = queued
	q.epoch++
	q.preempted++
	s.preemptions++
	s.queue.again(q)
}

// finish takes everything from a sequence in whatever phase.
func (s *scheduler) finish(q *sequence) {
	switch q.phase {
	case running:
		s.drop(q)
	case queued:
		s.queue.remove(q)
	}
	q.phase = done
}

// drop frees blocks and row. The last block is released first, so that of a prefix the end is evicted first.
func (s *scheduler) drop(q *sequence) {
	for i := len(q.table) - 1; i >= 0; i-- {
		s.blocks.release(q.table[i])
	}
	q.table = q.table[:0]
	s.rows = append(s.rows, q.row)
	q.row, q.prepared = -1, false
	q.computed, q.confirmed, q.published = 0, 0, 0
	s.run = slices.DeleteFunc(s.run, func(o *sequence) bool { return o == q })
}
