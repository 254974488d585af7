package finetune

import (
	"errors"
	"fmt"
	"math"
	"slices"

	"bhive/adapters"
	"bhive/infer"
	"bhive/kernels"
)

// LaneOptions say how one tenant's B is trained.
type LaneOptions struct {
	Rank    int
	Alpha   float64
	Targets []adapters.Proj // nil: all

	Train, Held []Example
	Seed        int64
	InOrder     bool // each epoch takes Train in its order, and is not shuffled by Seed
	Batching    Batching
	EvalSteps   int // optimizer steps between evaluations of Held; there is one at the end too

	Schedule     Schedule
	Beta1, Beta2 float64
	Epsilon      float64
	Decay        float64 // decoupled
	Clip         float64 // of the gradient's norm; 0: none
	Correction   bool
	MaxSkips     int // non-finite steps in a row after which the lane fails

	KeepBest bool // remember the B of the best evaluation

	Start *adapters.Weights // B to begin with; nil: zeros
	From  *Checkpoint       // where set, everything goes on from it
	// Report is called after each optimizer step and evaluation, on the goroutine of Unit.
	Report func(Report)
}

// Report is what happened to a lane.
type Report struct {
	Step      int // optimizer steps done
	Eval      bool
	Loss      float64 // mean over the step's, or the held-out examples', trained tokens
	GradNorm  float64 // before clipping
	Rate      float64
	Skipped   bool // the gradient was not finite; B is as before
	Best      bool // the best evaluation so far
	Tokens    int64
	Trained   int64
	Completed bool  // the lane has nothing more to do
	Err       error // the lane has failed: ErrDiverged
}

// Lane is one tenant's B in training. All its methods belong on the goroutine of Trainer.Unit.
type Lane struct {
	t     *Trainer
	index int
	o     LaneOptions
	scale float64 // alpha/rank

	// On the device; everything [1, rank·OutTotal] but correction and hyper.
	master, m, v, grad kernels.Tensor // F32
	working            kernels.Tensor // working dtype, scaled
	correction         kernels.Tensor // F32 [4·L·rank, rank]
	hyper              kernels.Tensor // F32 [1, HyperWords]
	frozen             [][2]int       // columns of grad that are not trained
	kept, keptWorking  kernels.Tensor // what master and working hold there, where a decay would shrink it
	owned              []kernels.Tensor

	order    *Order
	pos      position
	best     []float32 // B of the best evaluation
	queue    []Chunk   // of the optimizer step or evaluation under way
	weight   float32   // 1/trained tokens of the step
	trained  int
	next     int64   // cursor after the step
	lossSum  float64 // Σ nll of the chunks done
	lossN    int
	tokens   int64
	complete bool
}

// position is where a lane stands between two optimizer steps.
type position struct {
	Step     int     `json:"step"`    // optimizer steps done, skipped ones included
	Updates  int     `json:"updates"` // AdamW's t
	Cursor   int64   `json:"cursor"`  // examples taken
	Skips    int     `json:"skips"`   // in a row
	Skipped  int     `json:"skipped"` // in all
	EvalStep int     `json:"eval_step"`
	BestStep int     `json:"best_step"`
	BestLoss float64 `json:"best_loss"`
	HasBest  bool    `json:"has_best"`
	LastEval float64 `json:"last_eval"`
}

func (l *Lane) open() error {
	be, g := l.t.m.Backend, l.t.m.Geometry
	r := l.o.Rank
	n := r * g.OutTotal()
	info := be.Info()
	alloc := func(to *kernels.Tensor, d kernels.DType, rows, cols int) error {
		t, err := be.Alloc(d, rows, cols)
		if err != nil {
			return fmt.Errorf("allocating optimizer state of rank %d: %w", r, err)
		}
		*to = t
		l.owned = append(l.owned, t)
		return nil
	}
	for _, a := range []struct {
		to *kernels.Tensor
		d  kernels.DType
	}{{&l.master, kernels.F32}, {&l.m, kernels.F32}, {&l.v, kernels.F32}, {&l.grad, kernels.F32}, {&l.working, info.Working}} {
		if err := alloc(a.to, a.d, 1, n); err != nil {
			return err
		}
	}
	if err := alloc(&l.hyper, kernels.F32, 1, kernels.HyperWords); err != nil {
		return err
	}
	if l.o.Correction {
		rows := g.Layers * int(adapters.NumSites) * r
		if err := alloc(&l.correction, kernels.F32, rows, r); err != nil {
			return err
		}
		c := make([]float32, 0, rows*r)
		s2 := l.scale * l.scale
		for layer := range g.Layers {
			for site := range adapters.NumSites {
				for _, x := range l.t.m.Basis.Correction(layer, site, r) {
					c = append(c, float32(float64(x)/s2))
				}
			}
		}
		be.Upload(l.t.stream, l.correction, floatBytes(c))
	}
	l.order = NewOrder(len(l.o.Train), l.o.Seed)
	l.order.fixed = l.o.InOrder
	l.freeze(g)

	start := l.o.Start
	if c := l.o.From; c != nil {
		if len(c.B) != n || len(c.M) != n || len(c.V) != n {
			return fmt.Errorf("%w: it holds %d numbers where rank %d has %d", ErrCheckpoint, len(c.B), r, n)
		}
		l.pos, l.best = c.position, c.Best
		be.Upload(l.t.stream, l.m, floatBytes(c.M))
		be.Upload(l.t.stream, l.v, floatBytes(c.V))
		start = &adapters.Weights{Geometry: g, Rank: r, Alpha: l.o.Alpha, Scaling: l.scale, Data: c.B}
	}
	if start != nil {
		w := *start
		w.Scaling = l.scale
		be.Upload(l.t.stream, l.master, floatBytes(w.Data))
		be.Upload(l.t.stream, l.working, w.Pack(infer.PackType(info.Working)))
		if n := l.frozenColumns(); n > 0 && l.o.Decay > 0 {
			if err := errors.Join(alloc(&l.kept, kernels.F32, 1, n), alloc(&l.keptWorking, info.Working, 1, n)); err != nil {
				return err
			}
			l.copyFrozen(false)
		}
	}
	be.SetAdapter(l.t.stream, l.t.table, l.index, l.working, r)
	be.SetLane(l.t.stream, l.t.lanes, l.index, l.grad, r, float32(l.scale))
	l.t.sync()
	l.o.Start, l.o.From = nil, nil // on the device
	l.complete = l.pos.Step >= l.o.Schedule.Steps && !l.evalDue()
	return nil
}

// freeze lists the columns of the gradient that no target projection owns.
func (l *Lane) freeze(g adapters.Geometry) {
	if l.o.Targets == nil {
		return
	}
	r := l.o.Rank
	for layer := range g.Layers {
		for p := range adapters.NumProjs {
			if slices.Contains(l.o.Targets, p) {
				continue
			}
			from := r * g.OutOffset(layer, p)
			to := from + r*g.Out(p)
			if n := len(l.frozen); n > 0 && l.frozen[n-1][1] == from {
				l.frozen[n-1][1] = to
			} else {
				l.frozen = append(l.frozen, [2]int{from, to})
			}
		}
	}
}

func (l *Lane) frozenColumns() (n int) {
	for _, f := range l.frozen {
		n += f[1] - f[0]
	}
	return n
}

// copyFrozen copies what is not trained to where it is kept, or back.
func (l *Lane) copyFrozen(back bool) {
	at := 0
	for _, f := range l.frozen {
		to := at + f[1] - f[0]
		for _, x := range [...][2]kernels.Tensor{{l.kept, l.master}, {l.keptWorking, l.working}} {
			dst, src := x[0].ColRange(at, to), x[1].ColRange(f[0], f[1])
			if back {
				dst, src = src, dst
			}
			l.t.m.Backend.Copy(l.t.stream, dst, src)
		}
		at = to
	}
}

func (l *Lane) close() {
	be := l.t.m.Backend
	be.SetAdapter(l.t.stream, l.t.table, l.index, kernels.Tensor{}, 0)
	be.SetLane(l.t.stream, l.t.lanes, l.index, kernels.Tensor{}, 0, 0)
	l.t.sync()
	for _, t := range l.owned {
		be.Free(t)
	}
	l.owned = nil
}

func (l *Lane) evalDue() bool {
	if len(l.o.Held) == 0 || l.pos.EvalStep == l.pos.Step {
		return false
	}
	return l.pos.Step >= l.o.Schedule.Steps || l.o.EvalSteps > 0 && l.pos.Step%l.o.EvalSteps == 0
}

// peek is the lane's next chunk, nil where it has none.
func (l *Lane) peek() *Chunk {
	if l.complete {
		return nil
	}
	if len(l.queue) == 0 {
		l.lossSum, l.lossN, l.tokens = 0, 0, 0
		if l.evalDue() {
			l.queue = evaluation(l.o.Held, l.t.c.BatchTokens, l.t.c.Seqs)
		} else {
			l.queue, l.trained, l.next = l.o.Batching.batch(l.o.Train, l.order, l.pos.Cursor, l.t.c.BatchTokens, l.t.c.Seqs)
			l.weight = float32(1 / float64(l.trained))
		}
	}
	return &l.queue[0]
}

// examples is what a chunk's indices stand for.
func (l *Lane) examples(c *Chunk) []Example {
	if c.Eval {
		return l.o.Held
	}
	return l.o.Train
}

// add takes note of a chunk that went through.
func (l *Lane) add(nll float64, tokens, labels int) {
	l.lossSum += nll
	l.lossN += labels
	l.tokens += int64(tokens)
	l.queue = l.queue[1:]
}

func (l *Lane) finishEval() {
	loss := l.lossSum / float64(max(l.lossN, 1))
	finite := !math.IsNaN(loss) && !math.IsInf(loss, 0)
	l.pos.EvalStep, l.pos.LastEval = l.pos.Step, finiteOr(loss, math.MaxFloat32) // which is stored as JSON
	better := finite && (!l.pos.HasBest || loss < l.pos.BestLoss)
	if better {
		l.pos.HasBest, l.pos.BestLoss, l.pos.BestStep = true, loss, l.pos.Step
		if l.o.KeepBest {
			l.t.copyToHost(l, func(x [][]float32, err error) {
				if err == nil {
					l.best = x[0]
				}
			}, l.master)
		}
	}
	l.complete = l.pos.Step >= l.o.Schedule.Steps
	l.report(Report{Step: l.pos.Step, Eval: true, Loss: loss, Best: better, Tokens: l.tokens, Completed: l.complete})
}

// hyperparameters of the update under way.
func (l *Lane) hyperparameters() []float32 {
	h := l.t.hypers[l.index*kernels.HyperWords:][:kernels.HyperWords]
	h[kernels.HyperLR] = float32(l.o.Schedule.At(l.pos.Step))
	h[kernels.HyperBeta1] = float32(l.o.Beta1)
	h[kernels.HyperBeta2] = float32(l.o.Beta2)
	h[kernels.HyperEps] = float32(l.o.Epsilon)
	h[kernels.HyperDecay] = float32(l.o.Decay)
	h[kernels.HyperClip] = float32(l.o.Clip)
	h[kernels.HyperStep] = float32(l.pos.Updates + 1)
	h[kernels.HyperScaling] = float32(l.scale)
	return h
}

// update enqueues the optimizer's step; the norms are on the device already.
func (l *Lane) update(norms kernels.Tensor, sites []kernels.SiteRows) {
	be := l.t.m.Backend
	be.Upload(l.t.stream, l.hyper, floatBytes(l.hyperparameters()))
	be.AdamW(l.t.stream, kernels.AdamWArgs{Lane: l.index, Master: l.master, M: l.m, V: l.v, Grad: l.grad, Working: l.working, Rank: l.o.Rank,
		Sites: sites, Correction: l.correction, Norms: norms, Hyper: l.hyper})
	if l.kept.Present() {
		l.copyFrozen(true)
	}
}

// finishStep takes note of an optimizer step whose squared gradient norm was norm2.
func (l *Lane) finishStep(norm2 float32) {
	norm := math.Sqrt(float64(norm2))
	r := Report{Loss: l.lossSum / float64(l.trained), GradNorm: norm, Rate: l.o.Schedule.At(l.pos.Step), Tokens: l.tokens, Trained: int64(l.trained)}
	l.pos.Step++
	l.pos.Cursor = l.next
	if math.IsNaN(norm) || math.IsInf(norm, 0) {
		r.Skipped = true
		l.pos.Skips++
		l.pos.Skipped++
		if l.pos.Skips >= l.o.MaxSkips || l.pos.Step >= l.o.Schedule.Steps && l.pos.Updates == 0 { // or it has learnt nothing
			r.Err = fmt.Errorf("%w: %d optimizer steps in a row had a gradient that was not finite", ErrDiverged, l.pos.Skips)
		}
	} else {
		l.pos.Skips = 0
		l.pos.Updates++
	}
	r.Step = l.pos.Step
	l.complete = r.Err != nil || l.pos.Step >= l.o.Schedule.Steps && !l.evalDue()
	r.Completed = l.complete
	l.report(r)
}

func (l *Lane) report(r Report) {
	if l.o.Report != nil {
		l.o.Report(r)
	}
}

// checkpoint gives done the lane's state as it was after its last optimizer step; what it has of the next is not in it.
func (l *Lane) checkpoint(done func(*Checkpoint, error)) {
	l.t.copyToHost(l, func(x [][]float32, err error) {
		if err != nil {
			done(nil, err)
			return
		}
		done(&Checkpoint{position: l.pos, B: x[0], M: x[1], V: x[2], Best: l.best}, nil)
	}, l.master, l.m, l.v)
}

// encoding is for the lane's B.
func (l *Lane) encoding() *adapters.Encoding {
	return adapters.NewEncoding(adapters.Weights{Geometry: l.t.m.Geometry, Rank: l.o.Rank, Alpha: l.o.Alpha, Scaling: l.scale}, l.o.Targets)
}

// weights brings the lane's B, or with best that of its best evaluation, to an encoding. done is called on the goroutine of Enqueue when the lane is not
// needed for it any more.
func (l *Lane) weights(best bool, b *adapters.Encoding, done func()) {
	c := &copying{lane: l, from: []kernels.Tensor{l.master}, due: true, take: func(_, at int, piece []float32) { b.Put(at, piece) }}
	if best = best && l.pos.HasBest; best {
		c.from = nil // it is on the host, once the copies before this are
	}
	c.done = func(err error) {
		switch {
		case err != nil:
			b.Fail(err)
		case best:
			go b.Fill(l.best)
		}
		done()
	}
	l.t.copyOut(c)
}
