package cpu

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
)

// task is an op's work in equal-footed parts; a part's result does not depend on the worker that runs it.
type task interface {
	part(worker, i int)
}

// A job is one word, so that a worker that took a part by compare-and-swap took it from the job then current:
// next part (20 bits), number of parts (20), task (8), generation (16).
const (
	partBits = 20
	partMask = 1<<partBits - 1
)

// spins is how often an idle worker looks for work before it parks: some tens of microseconds.
const spins = 20_000

// pool runs tasks on the caller (worker 0) and on workers that live as long as the pool.
type pool struct {
	job    atomic.Uint64
	_      [56]byte
	done   atomic.Int64 // parts finished of the job
	_      [56]byte
	parked atomic.Int32
	closed atomic.Bool
	failed atomic.Pointer[string] // the first panic of a part

	tasks   []task // by id, fixed from the start
	wake    chan struct{}
	workers int
	wg      sync.WaitGroup
}

// start makes a pool of the given number of workers, the caller included.
func (p *pool) start(workers int, tasks []task) {
	p.workers, p.tasks = workers, tasks
	p.wake = make(chan struct{}, workers)
	for w := 1; w < workers; w++ {
		p.wg.Go(func() { p.live(w) })
	}
}

// stop ends the workers and waits for them.
func (p *pool) stop() {
	p.closed.Store(true)
	close(p.wake)
	p.wg.Wait()
}

// run executes parts 0…n−1 of a task and returns when all are finished.
func (p *pool) run(id, n int) {
	if n <= 1 || p.workers == 1 {
		for i := range n {
			p.tasks[id].part(0, i)
		}
		return
	}
	if n > partMask {
		panic(fmt.Sprintf("cpu: %d parts", n))
	}
	p.done.Store(0)
	generation := p.job.Load()>>48 + 1
	p.job.Store(generation<<48 | uint64(id)<<40 | uint64(n)<<partBits)
	for range min(int(p.parked.Load()), n-1) {
		select {
		case p.wake <- struct{}{}:
		default:
		}
	}
	p.work(0)
	for i := 0; p.done.Load() < int64(n); i++ {
		if i > spins {
			runtime.Gosched()
		}
	}
	if f := p.failed.Swap(nil); f != nil { // this task's alone: the next one has done nothing wrong
		panic(*f)
	}
}

// work takes parts of the current job until none is left, and reports whether it took any.
func (p *pool) work(worker int) bool {
	took := false
	for {
		j := p.job.Load()
		i := j & partMask
		if i >= j>>partBits&partMask {
			return took
		}
		if p.job.CompareAndSwap(j, j+1) {
			took = true
			p.one(worker, int(j>>40&0xff), int(i))
		}
	}
}

func (p *pool) one(worker, id, i int) {
	defer func() {
		if r := recover(); r != nil {
			text := fmt.Sprintf("%v\n%s", r, debug.Stack())
			p.failed.CompareAndSwap(nil, &text)
		}
		p.done.Add(1)
	}()
	p.tasks[id].part(worker, i)
}

// live is a worker's life: work, look around for a while, park.
func (p *pool) live(worker int) {
	idle := 0
	for !p.closed.Load() {
		if p.work(worker) {
			idle = 0
			continue
		}
		if idle++; idle < spins {
			continue
		}
		idle = 0
		p.parked.Add(1)
		if !p.ready() {
			<-p.wake
		}
		p.parked.Add(-1)
	}
}

// ready reports whether the current job has parts left.
func (p *pool) ready() bool {
	j := p.job.Load()
	return j&partMask < j>>partBits&partMask
}
