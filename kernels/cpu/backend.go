package cpu

import (
	"fmt"
	"runtime"

	"bhive/kernels"
	"bhive/kernels/cpu/simd"
)

// Ids of the tasks in the pool.
const (
	taskEmbed = iota
	taskNorm
	taskLinear
	taskQKV
	taskAttention
	taskResidual
	taskMLP
	taskSample
	taskLinearBackward
	taskCrossEntropy
	taskNormBackward
	taskExpandBackward
	taskMLPBackward
	taskAttentionBackward
	taskQKVBackward
	taskGradNorm
	taskAdamW
	taskGram
	taskCount
)

// Backend runs ops on the host's cores. Its methods are called from one goroutine.
type Backend struct {
	config Config
	k      *simd.Kernels
	limit  int64 // bytes, 0: unknown
	used   int64 // bytes
	closed bool

	pool    pool
	scratch []scratch // by worker

	records    map[recordKey]*kernels.Record
	lastKey    recordKey
	lastRecord *kernels.Record

	embed     embedTask
	norm      normTask
	linear    linearTask
	qkv       qkvTask
	attention attentionTask
	residual  residualTask
	mlp       mlpTask
	sample    sampleTask

	linearBackward    linearBackwardTask
	crossEntropy      crossEntropyTask
	normBackward      normBackwardTask
	expandBackward    expandBackwardTask
	mlpBackward       mlpBackwardTask
	attentionBackward attentionBackwardTask
	qkvBackward       qkvBackwardTask
	gradNorm          gradNormTask
	adamW             adamWTask
	gram              gramTask
}

var _ kernels.Backend = (*Backend)(nil)

// Open starts the backend's threads. Close ends them.
func Open(c Config) (*Backend, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	b := &Backend{config: c, k: simd.Best, limit: c.MemoryBytes, records: map[recordKey]*kernels.Record{}}
	if b.limit == 0 {
		b.limit = MachineMemory()
	}
	b.scratch = make([]scratch, c.threads())
	tasks := make([]task, taskCount)
	tasks[taskEmbed] = &b.embed
	tasks[taskNorm] = &b.norm
	tasks[taskLinear] = &b.linear
	tasks[taskQKV] = &b.qkv
	tasks[taskAttention] = &b.attention
	tasks[taskResidual] = &b.residual
	tasks[taskMLP] = &b.mlp
	tasks[taskSample] = &b.sample
	tasks[taskLinearBackward] = &b.linearBackward
	tasks[taskCrossEntropy] = &b.crossEntropy
	tasks[taskNormBackward] = &b.normBackward
	tasks[taskExpandBackward] = &b.expandBackward
	tasks[taskMLPBackward] = &b.mlpBackward
	tasks[taskAttentionBackward] = &b.attentionBackward
	tasks[taskQKVBackward] = &b.qkvBackward
	tasks[taskGradNorm] = &b.gradNorm
	tasks[taskAdamW] = &b.adamW
	tasks[taskGram] = &b.gram
	b.pool.start(c.threads(), tasks)
	return b, nil
}

// Close ends the threads. A second Close does nothing.
func (b *Backend) Close() error {
	if !b.closed {
		b.closed = true
		b.pool.stop()
	}
	return nil
}

// Info describes the backend.
func (b *Backend) Info() kernels.Info {
	return kernels.Info{
		Backend:        "cpu",
		Device:         fmt.Sprintf("%s, %d threads, %s: the fastest that this machine can run", runtime.GOARCH, b.pool.workers, b.k.Name),
		Working:        b.config.Working,
		Activation:     kernels.F32,
		BatchInvariant: true,
		MemoryTotal:    b.limit,
		MemoryFree:     max(0, b.limit-b.used),
		CopyInPlace:    true,
	}
}

// scratch is one worker's own memory; it grows to the shapes in use and stays.
type scratch struct {
	a, b, c, d []float32
	f          []float32 // rows of the cache, gathered
	h          []uint16
	ids        []int32
	_          [64]byte // workers write their headers
}

// grown is s with at least n elements.
func grown[E any](s *[]E, n int) []E {
	if len(*s) < n {
		*s = newElements[E](n)
	}
	return (*s)[:n]
}
