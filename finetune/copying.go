package finetune

import (
	"errors"
	"math/bits"
	"slices"
	"sync"

	"bhive/infer"
	"bhive/kernels"
)

// copying brings tensors of a lane to the host in units: the device writes pieces to pinned memory, from which other goroutines take them. No
// optimizer step comes between its pieces.
type copying struct {
	lane *Lane
	from []kernels.Tensor         // F32 [1, n]
	due  bool                     // somebody waits for it
	done func([][]float32, error) // called on the goroutine of Enqueue

	to         [][]float32
	make       sync.Once
	tensor, at int            // what comes next
	taken      sync.WaitGroup // of the pieces
}

const (
	copyPiece   = 2 << 20 // numbers: 8 MiB, of which a link of 25 GB/s needs a third of a millisecond
	copyBuffers = 8
)

// copyBuffer is pinned memory of a piece.
type copyBuffer struct {
	data []float32
	end  kernels.Event // of the piece on its way into it; nil where there is none
	take func()        // brings the piece where it belongs
	busy sync.WaitGroup
}

// hand lets another goroutine take the piece that has arrived.
func (b *copyBuffer) hand() {
	b.end = nil
	b.busy.Go(b.take)
}

// openBuffers takes as much pinned memory as the largest copying fills.
func (t *Trainer) openBuffers() error {
	n := t.m.Basis.R * t.m.Geometry.OutTotal()
	piece := min(copyPiece, n)
	for range min(copyBuffers, 3*ceilDiv(n, piece)) {
		b := &copyBuffer{}
		var err error
		if b.data, err = hostWords[float32](t, piece); err != nil {
			return err
		}
		t.buffers = append(t.buffers, b)
	}
	return nil
}

// copyOut has tensors of a lane copied, as they are after its last optimizer step. done is always called, on the goroutine of Enqueue, with what l.pos
// then says; it must not remove the lane itself. What is not due is held to the time that training may take.
func (t *Trainer) copyOut(l *Lane, due bool, done func([][]float32, error), from ...kernels.Tensor) {
	switch {
	case t.err != nil:
		done(nil, t.err)
		return
	case t.active[l.index] != l:
		done(nil, errGone)
		return
	}
	t.copies = append(t.copies, &copying{lane: l, from: from, due: due, done: done})
}

// errGone is for copies of a lane that has left.
var errGone = errors.New("finetune: the lane is given back")

// copying reports whether the next unit is of the first copying: not while a lane stands between two states.
func (t *Trainer) copying() bool {
	return len(t.copies) > 0 && (t.pass == nil || !t.pass.updating())
}

// next describes the copying's next unit.
func (c *copying) next(t *Trainer) infer.Unit {
	due := slices.ContainsFunc(t.copies, func(c *copying) bool { return c.due }) // it waits for those before it
	if c.tensor == len(c.from) {
		return infer.Unit{Kind: "copied", Settled: true, Due: due}
	}
	return infer.Unit{Kind: "copy", Size: bits.Len(uint(c.piece(t))), Due: due}
}

func (c *copying) piece(t *Trainer) int {
	return min(len(t.buffers[0].data), int(c.from[c.tensor].Elements())-c.at)
}

// copy runs the first copying's next unit.
func (t *Trainer) copy() {
	for _, b := range t.buffers {
		if b.end != nil && b.end.Done() {
			b.hand()
		}
	}
	c := t.copies[0]
	if c.tensor == len(c.from) {
		t.copied()
		return
	}
	b := t.buffers[t.buffer]
	t.buffer = (t.buffer + 1) % len(t.buffers)
	if b.end != nil {
		t.wait(b.end)
		b.hand()
	}
	b.busy.Wait()
	tensor, at, n := c.tensor, c.at, c.piece(t)
	t.m.Backend.Download(t.stream, floatBytes(b.data[:n]), c.from[tensor].ColRange(at, at+n))
	b.end = t.stream.Record()
	c.taken.Add(1)
	b.take = func() {
		defer c.taken.Done()
		copy(c.host()[tensor][at:], b.data[:n])
	}
	if c.at += n; c.at == int(c.from[tensor].Elements()) {
		c.tensor, c.at = tensor+1, 0
	}
}

// host is the memory that it goes to.
func (c *copying) host() [][]float32 {
	c.make.Do(func() {
		for _, x := range c.from {
			c.to = append(c.to, make([]float32, x.Elements()))
		}
	})
	return c.to
}

// copied ends the first copying.
func (t *Trainer) copied() {
	t.passed()
	c := t.copies[0]
	for _, b := range t.buffers {
		if b.end != nil {
			t.wait(b.end)
			b.hand()
		}
	}
	c.taken.Wait()
	t.copies = t.copies[:copy(t.copies, t.copies[1:])]
	if t.err != nil {
		c.done(nil, t.err)
		return
	}
	c.done(c.host(), nil)
}

// endCopies brings the copies of a lane, and those before them, to their end at once.
func (t *Trainer) endCopies(l *Lane) {
	for t.err == nil && slices.ContainsFunc(t.copies, func(c *copying) bool { return c.lane == l }) {
		t.Enqueue(nil)
	}
}

// failCopies tells those who wait for copies of the device's failure.
func (t *Trainer) failCopies() {
	copies := t.copies
	t.copies = nil
	for _, c := range copies {
		c.done(nil, t.err)
	}
}

// closeBuffers waits until nobody reads the pinned memory any more.
func (t *Trainer) closeBuffers() {
	for _, b := range t.buffers {
		b.busy.Wait()
	}
	t.buffers, t.copies = nil, nil
}
