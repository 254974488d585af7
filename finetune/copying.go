package finetune

import (
	"errors"
	"fmt"
	"math/bits"
	"runtime"
	"slices"
	"sync"
	"time"

	"bhive/infer"
	"bhive/kernels"

	"golang.org/x/sync/errgroup"
)

// copying brings tensors of a lane to the host in units: the device writes pieces to pinned memory, from which other goroutines take each as soon as it
// has arrived. No optimizer step comes between its pieces.
type copying struct {
	lane *Lane
	from []kernels.Tensor                      // F32 [1, n]
	due  bool                                  // somebody waits for it
	take func(tensor, at int, piece []float32) // brings numbers of a tensor from the at-th on where they belong; called on goroutines of their own
	done func(error)                           // called on the goroutine of Enqueue when all is taken

	tensor, at int            // what comes next
	taken      errgroup.Group // of the pieces
}

const (
	copyPiece   = 512 << 10 // numbers: 2 MiB
	copyPieces  = 4         // of a unit: a link of 25 GB/s needs a third of a millisecond
	copyBuffers = 32
)

// copyBuffer is pinned memory of a piece.
type copyBuffer struct {
	data []float32
	busy sync.WaitGroup // until the piece is taken
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
	t.takers = make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2)) // requests are served on them too
	return nil
}

// copyOut has tensors of a lane copied, as they are after its last optimizer step. done is always called, on the goroutine of Enqueue, with what l.pos
// then says; it must not remove the lane itself. What is not due is held to the time that training may take.
func (t *Trainer) copyOut(c *copying) {
	switch {
	case t.err != nil:
		c.done(t.err)
		return
	case t.active[c.lane.index] != c.lane:
		c.done(errGone)
		return
	}
	t.copies = append(t.copies, c)
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
	return infer.Unit{Kind: "copy", Size: bits.Len(uint(min(copyPieces*len(t.buffers[0].data), c.left()))), Due: due}
}

// left is what has still to come of the present tensor.
func (c *copying) left() int { return int(c.from[c.tensor].Elements()) - c.at }

// copy runs the first copying's next unit.
func (t *Trainer) copy() {
	c := t.copies[0]
	if c.tensor == len(c.from) {
		t.copied()
		return
	}
	for range copyPieces {
		t.copyPiece(c)
		if c.left() == 0 {
			c.tensor, c.at = c.tensor+1, 0
			return
		}
	}
}

// copyPiece enqueues a piece, and has it taken when it has arrived.
func (t *Trainer) copyPiece(c *copying) {
	b := t.buffers[t.buffer]
	t.buffer = (t.buffer + 1) % len(t.buffers)
	b.busy.Wait()
	tensor, at, piece := c.tensor, c.at, b.data[:min(len(b.data), c.left())]
	c.at += len(piece)
	t.m.Backend.Download(t.stream, floatBytes(piece), c.from[tensor].ColRange(at, c.at))
	end, before, arrived := t.stream.Record(), t.arrived, make(chan struct{})
	t.arrived = arrived
	b.busy.Add(1)
	c.taken.Go(func() error {
		defer b.busy.Done()
		if before != nil {
			<-before // one looks at the device at a time
		}
		err := arrive(end)
		close(arrived)
		if err != nil {
			return err
		}
		t.takers <- struct{}{}
		defer func() { <-t.takers }()
		c.take(tensor, at, piece)
		return nil
	})
}

// arrive waits for an event away from the goroutine of Enqueue. It may be long, as what is served comes before.
func arrive(e kernels.Event) error {
	for !e.Done() {
		time.Sleep(50 * time.Microsecond)
	}
	return e.Wait()
}

// copied ends the first copying.
func (t *Trainer) copied() {
	t.passed()
	c := t.copies[0]
	if err := c.taken.Wait(); err != nil && t.err == nil {
		t.err = fmt.Errorf("training: %w", err)
	}
	t.copies = t.copies[:copy(t.copies, t.copies[1:])]
	c.done(t.err)
}

// hostCopy takes tensors to memory of their size.
type hostCopy struct {
	of   []kernels.Tensor
	make sync.Once
	to   [][]float32
}

func (h *hostCopy) take(tensor, at int, piece []float32) { copy(h.memory()[tensor][at:], piece) }

// memory is made when the first piece comes.
func (h *hostCopy) memory() [][]float32 {
	h.make.Do(func() {
		for _, x := range h.of {
			h.to = append(h.to, make([]float32, x.Elements()))
		}
	})
	return h.to
}

// copyToHost is copyOut to memory that done gets.
func (t *Trainer) copyToHost(l *Lane, done func([][]float32, error), from ...kernels.Tensor) {
	h := &hostCopy{of: from}
	t.copyOut(&copying{lane: l, from: from, take: h.take, done: func(err error) {
		if err != nil {
			done(nil, err)
			return
		}
		done(h.memory(), nil)
	}})
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
		c.done(t.err)
	}
}

// closeBuffers waits until nobody reads the pinned memory any more.
func (t *Trainer) closeBuffers() {
	for _, b := range t.buffers {
		b.busy.Wait()
	}
	t.buffers, t.copies = nil, nil
}
