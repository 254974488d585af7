package finetune

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"bhive/adapters"
	"bhive/infer"
	"bhive/kernels"
)

var _ infer.Background = (*Manager)(nil)

// device is the engine goroutine's side of a manager.
type device struct {
	mu       sync.Mutex
	commands []func()

	trainer *Trainer // the engine goroutine's; nil while nothing is trained
	failed  error    // of the device; final
}

// waiting reports whether a command waits.
func (d *device) waiting() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.commands) > 0
}

// command leaves work for the engine's goroutine.
func (d *device) command(m *Manager, f func()) {
	d.mu.Lock()
	d.commands = append(d.commands, f)
	d.mu.Unlock()
	if !m.ready.Swap(true) {
		m.d.Wake()
	}
}

func (d *device) take() []func() {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := d.commands
	d.commands = nil
	return c
}

func (d *device) close() {
	if d.trainer != nil {
		d.trainer.Close()
		d.trainer = nil
	}
}

// Ready reports whether there is device work. With Next and Enqueue it is infer.Background.
func (m *Manager) Ready() bool { return m.ready.Load() }

// Next describes what Enqueue does next: a unit of the trainer, or, before it, what other goroutines have left for the device.
func (m *Manager) Next() (infer.Unit, bool) {
	d := &m.device
	m.ready.Store(false) // whoever leaves something from now on sets it again
	u, ok := infer.Unit{Kind: "commands", Settled: true, Due: true}, true
	if !d.waiting() {
		if ok = d.trainer != nil && d.failed == nil; ok {
			u, ok = d.trainer.Next()
		}
	}
	if ok {
		m.ready.Store(true)
	}
	return u, ok
}

// Enqueue does what Next describes.
func (m *Manager) Enqueue(after kernels.Event) kernels.Event {
	d := &m.device
	if commands := d.take(); len(commands) > 0 {
		for _, f := range commands {
			f()
		}
		d.check(m)
		return nil
	}
	if d.trainer == nil || d.failed != nil {
		return nil
	}
	end := d.trainer.Enqueue(after)
	d.check(m)
	return end
}

// check ends what runs when the device has failed. After that there are no more units.
func (d *device) check(m *Manager) {
	if d.failed != nil || d.trainer == nil || d.trainer.err == nil {
		return
	}
	err := d.trainer.err
	d.failed = err
	d.trainer.failCopies()
	m.post(func() { m.failAll(err) })
}

// failAll ends what runs after the device has failed.
func (m *Manager) failAll(err error) {
	for _, j := range m.list() {
		if j.lane != nil {
			j.lane = nil
			m.fail(context.Background(), j, err)
		}
	}
}

// join asks the engine for a lane.
func (m *Manager) join(ctx context.Context, j *job, p preparation) {
	j.spec, j.data = p.spec, p.data
	j.options = p.options
	j.joining = true
	m.update(j, func(q *Job) {
		q.Spec = p.spec
		q.Progress.Examples, q.Progress.HeldOut, q.Progress.ExampleTokens = len(p.options.Train), len(p.options.Held), p.tokens
		q.Progress.Steps = p.options.Schedule.Steps
	})
	if p.truncated > 0 && p.options.From == nil {
		m.append(j, Event{Type: EventWarning, Level: "warn", Message: fmt.Sprintf("%d examples were cut to the longest possible", p.truncated)})
	}
	j.options.Start, j.options.From = nil, nil // the lane has them, until they are on the device
	r := &runner{m: m, j: j, p: p, run: ctx, ctx: context.WithoutCancel(ctx)}
	m.device.command(m, func() {
		lane, err := r.open()
		m.post(func() {
			j.joining = false
			if j.stop != nil { // paused or cancelled while it waited
				if err != nil {
					j.stop(r.ctx)
					return
				}
				stop := j.stop
				j.lane = lane
				m.leave(j, func(*Checkpoint) { stop(r.ctx) })
				return
			}
			if err != nil {
				if errors.Is(err, errNoLane) || errors.Is(err, kernels.ErrNoMemory) && m.others(j) { // a job that is lost may still have the lane
					j.blocked, j.options = true, LaneOptions{}
					m.setState(ctx, j, Queued, "waits for a lane and its memory")
					return
				}
				m.fail(ctx, j, err)
				return
			}
			j.lane = lane
			plan := lane.t.MemoryPlan()
			m.update(j, func(q *Job) { q.MemoryPlan = plan })
			now := time.Now()
			j.began, j.checkpointed, j.stepped, j.moved = now, now, now, false
			message := fmt.Sprintf("training %d examples, %d steps, learning rate %.3g, memory plan %s", len(p.options.Train), p.options.Schedule.Steps, p.options.Schedule.Rate, plan)
			if p.options.From != nil {
				message = fmt.Sprintf("goes on from step %d", p.options.From.Step)
			}
			m.setState(ctx, j, Running, message)
		})
	})
}

// others reports whether another job has a lane, or is about to get one or to give one back.
func (m *Manager) others(j *job) bool {
	for _, o := range m.jobs {
		if o != j && (o.lane != nil || o.joining) {
			return true
		}
	}
	return m.leaving > 0
}

// leave takes a job off the device; then gets its state, or nil where the device has failed, when the lane is free.
func (m *Manager) leave(j *job, then func(*Checkpoint)) {
	lane := j.lane
	j.lane = nil
	m.leaving++
	m.device.command(m, func() {
		lane.checkpoint(func(c *Checkpoint, _ error) {
			m.device.command(m, func() {
				m.device.remove(lane)
				m.post(func() {
					m.leaving--
					j.options = LaneOptions{} // they hold the examples
					m.unblock()
					then(c)
				})
			})
		})
	})
}

// unblock has those that wait for memory try again.
func (m *Manager) unblock() {
	for _, o := range m.jobs {
		o.blocked = false
	}
}

func (d *device) remove(l *Lane) {
	if d.trainer == nil {
		return
	}
	d.trainer.Remove(l)
	if d.trainer.Free() == d.trainer.c.Lanes {
		d.close()
	}
}

// runner is a job on the device: its methods run on the engine's goroutine, and post what they see to Run's.
type runner struct {
	m    *Manager
	j    *job
	p    preparation
	run  context.Context // Run's
	ctx  context.Context // goes on when Run ends
	lane *Lane
	base []string // the base's texts
}

func (r *runner) open() (*Lane, error) {
	d := &r.m.device
	if d.failed != nil {
		return nil, d.failed
	}
	if d.trainer == nil {
		t, err := NewTrainer(r.m.d.Model, r.m.c.Trainer)
		if err != nil {
			return nil, err
		}
		d.trainer = t
	}
	o := r.p.options
	o.Report = r.report
	l, err := d.trainer.Add(o)
	if err != nil {
		if d.trainer.Free() == d.trainer.c.Lanes {
			d.close()
		}
		return nil, err
	}
	r.lane, r.p.options.Start, r.p.options.From = l, nil, nil
	if len(r.p.promptIDs) > 0 {
		enc := r.m.d.Encoder
		d.trainer.Sample(l, true, r.p.promptIDs, r.p.spec.SampleTokens, enc.Stops, func(out [][]int) {
			for _, ids := range out {
				r.base = append(r.base, enc.Decode(ids))
			}
		})
	}
	if l.complete { // a checkpoint of the end
		r.complete()
	}
	return l, nil
}

// report is called by the trainer after a step or an evaluation.
func (r *runner) report(rep Report) {
	position, now := r.lane.pos, time.Now()
	progress := func() { r.m.progress(r.ctx, r.j, rep, position, now) }
	if rep.Err != nil { // whoever takes its place finds it free
		r.m.device.command(r.m, func() {
			r.m.device.remove(r.lane)
			r.m.post(progress)
		})
		return
	}
	r.m.post(progress)
	switch {
	case rep.Completed:
		r.sample(rep.Step, r.complete)
	case !rep.Eval && rep.Step%r.p.spec.SampleSteps == 0:
		r.sample(rep.Step, nil)
	}
}

// sample shows the candidate's texts, and then goes on to then.
func (r *runner) sample(step int, then func()) {
	if len(r.p.promptIDs) == 0 {
		if then != nil {
			then()
		}
		return
	}
	enc := r.m.d.Encoder
	r.m.device.trainer.Sample(r.lane, false, r.p.promptIDs, r.p.spec.SampleTokens, enc.Stops, func(out [][]int) {
		var events []Event
		for i, ids := range out {
			s := &Sample{Step: step, Index: i, Prompt: r.p.prompts[i], Base: r.base[i], Candidate: enc.Decode(ids)}
			events = append(events, Event{Type: EventSample, Message: fmt.Sprintf("step %d: %s", step, s.Candidate), Sample: s})
		}
		r.m.post(func() { r.m.append(r.j, events...) })
		if then != nil {
			then()
		}
	})
}

// complete publishes the lane's B, which is still to come from the device, and gives the lane back when it has.
func (r *runner) complete() {
	r.m.device.command(r.m, func() {
		best := r.p.options.KeepBest && r.lane.pos.HasBest
		result := completion{step: r.lane.pos.Step}
		if best {
			result.step = r.lane.pos.BestStep
		}
		if r.lane.pos.HasBest {
			loss := r.lane.pos.LastEval
			if best {
				loss = r.lane.pos.BestLoss
			}
			result.loss = &loss
		}
		result.b = r.lane.encoding()
		free := make(chan struct{})
		gone := sync.OnceFunc(func() { close(free) })
		r.m.post(func() {
			r.m.complete(r.ctx, r.j, result)
			<-free // no other job is begun before: it would find no lane
		})
		// Run waits for it, and must not for ever when the engine is gone.
		stop := context.AfterFunc(r.run, func() {
			time.AfterFunc(r.m.c.Shutdown, func() {
				result.b.Fail(errStopped)
				gone()
			})
		})
		r.lane.weights(best, result.b, func() {
			r.m.device.command(r.m, func() {
				r.m.device.remove(r.lane)
				stop()
				gone()
			})
		})
	})
}

// completion is what a job ends with.
type completion struct {
	b    *adapters.Encoding // on its way
	step int
	loss *float64 // of the validation
}

// errStopped is why a B does not come.
var errStopped = errors.New("the engine stopped before it gave the training's result")
