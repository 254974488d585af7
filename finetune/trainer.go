package finetune

import (
	"errors"
	"fmt"
	"slices"
	"unsafe"

	"bhive/adapters"
	"bhive/infer"
	"bhive/kernels"
)

// TrainerConfig sizes a trainer.
type TrainerConfig struct {
	Lanes       int // tenants at once; default: 4
	BatchTokens int // T of a micro-batch, and the longest example; default: 1024, or the model's context where less
	Seqs        int // sequences of a micro-batch; default: 64
	BlockTokens int // P; default: 4, so that the last blocks of many sequences waste little
	// MemoryPlan is what a pass recomputes in its backward to need less memory: none, mlp or layer; default: auto, the first of these
	// that fits what is free when the trainer is made.
	MemoryPlan string
}

// SetDefaults fills in what is zero for a model of that context.
func (c *TrainerConfig) SetDefaults(context int) {
	setDefault(&c.Lanes, 4)
	setDefault(&c.BatchTokens, min(1024, context))
	setDefault(&c.Seqs, 64)
	setDefault(&c.BlockTokens, 4)
	setDefault(&c.MemoryPlan, planAuto)
}

// Validate names a field that is out of range.
func (c TrainerConfig) Validate() error {
	for _, f := range []struct {
		name          string
		v, low, above int
	}{{"lanes", c.Lanes, 1, 64}, {"batch_tokens", c.BatchTokens, 16, 1 << 20}, {"seqs", c.Seqs, 1, 4096}, {"block_tokens", c.BlockTokens, 1, 1024}} {
		if f.v < f.low || f.v > f.above {
			return fmt.Errorf("trainer: %s must be between %d and %d, is %d", f.name, f.low, f.above, f.v)
		}
	}
	return validPlan(c.MemoryPlan)
}

// Trainer trains several lanes in one batch, each as if alone. Everything happens on one goroutine, in units: see Next.
type Trainer struct {
	m *infer.Model
	c TrainerConfig

	enqueued []infer.StepSeq // of the record being filled

	stream kernels.Stream
	mem    *infer.Training
	back   backward
	table  kernels.AdapterTable // slot l is lane l's working B
	lanes  kernels.LaneTable
	norms  kernels.Tensor // F32 [1, lanes]
	nll    kernels.Tensor // F32 [1, T]
	sites  []kernels.SiteRows

	train, serve stepRecord // of training passes, of samples

	active  []*Lane         // by lane; nil where free
	turn    int             // the lane that comes first in the next pass
	pass    *pass           // under way
	samples []*sampling     // in order
	copies  []*copying      // in order; they go before everything else
	ends    []kernels.Event // of the units enqueued last, in order
	err     error           // of the device; final

	headTokens int // whose losses are one unit

	// What the device copies from and to by itself.
	hypers  []float32 // of each lane's update
	losses  []float32 // of a pass, by token
	squares []float32 // of gradient norms, by lane
	drawn   []int32   // of a sample, by row
	buffers []*copyBuffer
	buffer  int           // that is filled next
	arrived chan struct{} // closed when the piece enqueued last has
	takers  chan struct{} // holds one for each goroutine that takes a piece
	pinned  [][]byte
}

// stepRecord is a step record on both sides.
type stepRecord struct {
	rec  *kernels.Record
	step kernels.Step
}

// NewTrainer allocates a trainer's device memory; kernels.ErrNoMemory where it does not fit.
func NewTrainer(m *infer.Model, c TrainerConfig) (_ *Trainer, err error) {
	c.SetDefaults(m.Config.MaxPositions)
	if err := c.Validate(); err != nil {
		return nil, err
	}
	be := m.Backend
	if info := be.Info(); info.NoTraining {
		return nil, fmt.Errorf("%w (%s)", ErrDevice, info.Device)
	}
	plan := c.plan(m, be.Info().MemoryFree)
	t := &Trainer{m: m, c: c, stream: be.NewStream(), active: make([]*Lane, c.Lanes), headTokens: be.LossTokens(c.BatchTokens, m.Head)}
	defer func() {
		if err != nil {
			t.Close()
		}
	}()
	if t.lanes, err = be.NewLaneTable(c.Lanes); err != nil {
		return nil, fmt.Errorf("allocating a lane table: %w", err)
	}
	if t.table, err = be.NewAdapterTable(c.Lanes); err != nil {
		return nil, fmt.Errorf("allocating an adapter table: %w", err)
	}
	if t.mem, err = infer.NewTraining(m, c.memory(plan)); err != nil {
		return nil, err
	}
	t.back = backward{m, t.lanes, t.mem}
	if t.norms, err = be.Alloc(kernels.F32, 1, c.Lanes); err != nil {
		return nil, err
	}
	if t.nll, err = be.Alloc(kernels.F32, 1, c.BatchTokens); err != nil {
		return nil, err
	}
	train, serve := c.buckets()
	if t.train, err = t.newStepRecord(train); err != nil {
		return nil, err
	}
	if t.serve, err = t.newStepRecord(serve); err != nil {
		return nil, err
	}
	for _, h := range []struct {
		to *[]float32
		n  int
	}{{&t.hypers, c.Lanes * kernels.HyperWords}, {&t.losses, c.BatchTokens}, {&t.squares, c.Lanes}} {
		if *h.to, err = hostWords[float32](t, h.n); err != nil {
			return nil, err
		}
	}
	if t.drawn, err = hostWords[int32](t, t.mem.Sample.Rows); err != nil {
		return nil, err
	}
	if err = t.openBuffers(); err != nil {
		return nil, err
	}
	for range m.Layers {
		for site := range adapters.NumSites {
			t.sites = append(t.sites, kernels.SiteRows{Rows: m.SiteOut(site)})
		}
	}
	return t, nil
}

func (t *Trainer) newStepRecord(b kernels.Bucket) (stepRecord, error) {
	n := kernels.RecordWords(b)
	host, err := hostWords[int32](t, n)
	if err != nil {
		return stepRecord{}, err
	}
	words, err := t.m.Backend.Alloc(kernels.I32, 1, n)
	if err != nil {
		return stepRecord{}, fmt.Errorf("allocating a step record: %w", err)
	}
	return stepRecord{rec: kernels.NewRecord(b, host), step: kernels.Step{Bucket: b, Words: words}}, nil
}

// hostWords is host memory that the device copies from and to while the host goes on.
func hostWords[E int32 | float32](t *Trainer, n int) ([]E, error) {
	if t.m.Backend.Info().CopyInPlace {
		return make([]E, n), nil
	}
	p, err := t.m.Backend.Pinned(4 * n)
	if err != nil {
		return nil, fmt.Errorf("allocating pinned memory: %w", err)
	}
	t.pinned = append(t.pinned, p)
	return unsafe.Slice((*E)(unsafe.Pointer(unsafe.SliceData(p))), n), nil
}

// Close frees everything. It may be called twice.
func (t *Trainer) Close() {
	be := t.m.Backend
	if t.stream != nil {
		t.sync()
	}
	t.closeBuffers()
	for i, l := range t.active {
		if l != nil {
			l.close()
			t.active[i] = nil
		}
	}
	if t.mem != nil {
		t.mem.Close()
	}
	for _, x := range []*kernels.Tensor{&t.norms, &t.nll, &t.train.step.Words, &t.serve.step.Words} {
		if x.Present() {
			be.Free(*x)
			*x = kernels.Tensor{}
		}
	}
	if t.table != nil {
		be.FreeAdapterTable(t.table)
	}
	if t.lanes != nil {
		be.FreeLaneTable(t.lanes)
	}
	if t.stream != nil {
		be.FreeStream(t.stream)
	}
	for _, p := range t.pinned {
		be.FreePinned(p)
	}
	t.table, t.lanes, t.stream, t.pinned = nil, nil, nil, nil
	t.pass, t.samples = nil, nil
}

// errNoLane is returned by Add where all lanes are taken.
var errNoLane = errors.New("finetune: all training lanes are taken")

// Free is the number of lanes that Add can give.
func (t *Trainer) Free() (n int) {
	for _, l := range t.active {
		if l == nil {
			n++
		}
	}
	return n
}

// Add gives a tenant a lane. Errors: kernels.ErrNoMemory, adapters.ErrRank, ErrCheckpoint.
func (t *Trainer) Add(o LaneOptions) (*Lane, error) {
	if o.Rank < 1 || o.Rank > t.m.Basis.R {
		return nil, fmt.Errorf("rank %d of a basis of %d rows: %w", o.Rank, t.m.Basis.R, adapters.ErrRank)
	}
	setDefault(&o.MaxSkips, 10)
	for i, l := range t.active {
		if l == nil {
			l := &Lane{t: t, index: i, o: o, scale: o.Alpha / float64(o.Rank)}
			if err := l.open(); err != nil {
				l.close()
				return nil, err
			}
			t.active[i] = l
			return l, nil
		}
	}
	return nil, errNoLane
}

// Remove gives a lane back. What it has of a step that is not complete is dropped, and nobody else notices.
func (t *Trainer) Remove(l *Lane) {
	if t.active[l.index] != l {
		return
	}
	t.endCopies(l)
	if t.pass != nil {
		t.sync()
		t.pass.drop(t, l)
	}
	t.samples = slices.DeleteFunc(t.samples, func(s *sampling) bool { return s.lane == l })
	l.close()
	t.active[l.index] = nil
}

// Ready reports whether Unit has something to do.
func (t *Trainer) Ready() bool {
	if t.pass != nil || len(t.samples) > 0 || len(t.copies) > 0 {
		return true
	}
	for _, l := range t.active {
		if l != nil && !l.complete {
			return true
		}
	}
	return false
}

// Unit runs a unit while those enqueued just before it may still be under way, and returns false where there is nothing to do. An error is the device's
// and final.
func (t *Trainer) Unit() (bool, error) {
	if _, ok := t.Next(); !ok {
		return false, t.err
	}
	t.Enqueue(nil)
	if len(t.ends) > unitsAhead {
		t.wait(t.ends[0])
		t.ends = t.ends[:copy(t.ends, t.ends[1:])]
	}
	return true, t.err
}

// unitsAhead are the most units that Unit leaves under way.
const unitsAhead = 3

// passed waits for all units.
func (t *Trainer) passed() {
	for _, e := range t.ends {
		t.wait(e)
	}
	t.ends = t.ends[:0]
}

func (t *Trainer) wait(e kernels.Event) {
	if err := e.Wait(); err != nil && t.err == nil {
		t.err = fmt.Errorf("training: %w", err)
	}
}

// sync waits for the stream; a failure is kept for Unit.
func (t *Trainer) sync() {
	t.passed()
	if err := t.stream.Sync(); err != nil && t.err == nil {
		t.err = fmt.Errorf("training: %w", err)
	}
}

// floatBytes is the memory of a slice as the device copies it.
func floatBytes(f []float32) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(f))), 4*len(f))
}

func ceilDiv(a, b int) int { return (a + b - 1) / b }

func int32Bytes(v []int32) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(v))), 4*len(v))
}
