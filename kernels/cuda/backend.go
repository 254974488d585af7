//go:build cuda

package cuda

import (
	_ "embed"
	"fmt"
	"runtime"
	"strings"
	"sync"

	"gorgonia.org/cu"

	"bhive/kernels"
)

//go:embed kernels.fatbin
var fatbin string

// Backend runs ops on one GPU.
type Backend struct {
	config       Config
	name         string // of the device
	processors   int    // multiprocessors
	overlap      bool
	hopper       bool   // of compute capability 9: it has the kernels of hopper.cuh
	warpgroups   bool   // prefill attention and its backward by warpgroup products
	only         *way   // of all linears, in benchmarks
	decodeBlocks int    // of decode attention on a multiprocessor, in benchmarks
	lt           string // "", or why cuBLASLt is not used
	closed       bool

	module    cu.Module
	functions map[string]cu.Function
	setup     cu.Stream // zeroing, filling
	args      []uint64  // of the launch being made

	mu     sync.Mutex // events are asked from any goroutine
	err    error      // the first failure; final
	events []cu.Event // free

	owned []cu.DevicePtr // scratch, freed at Close
	plans map[ltKey]ltPlan
	maps  map[mapKey]tensorMap
	marks *[]mark // of a profile under way
}

var _ kernels.Backend = (*Backend)(nil)

// Probe names the GPU that Open would use, or says why there is none.
func Probe() (device string, err error) {
	if s := driverState(); s != "" {
		return "", fmt.Errorf("%w: %s", ErrUnavailable, s)
	}
	n, err := cu.NumDevices()
	if err != nil || n == 0 {
		return "", fmt.Errorf("%w: the driver lists %d devices (%v)", ErrUnavailable, n, err)
	}
	name, err := cu.Device(0).Name()
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if attribute(0, attributeMajor) < 8 {
		return "", fmt.Errorf("%w: %s has compute capability %d.%d, below 8.0", ErrUnavailable, name, attribute(0, attributeMajor), attribute(0, attributeMinor))
	}
	return name, nil
}

// Open takes the GPU. Close gives it back. Errors: ErrConfig, ErrUnavailable.
func Open(c Config) (kernels.Backend, error) { return open(c) }

func open(c Config) (_ *Backend, err error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if _, err := Probe(); err != nil {
		return nil, err
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := retain(c.Device); err != nil {
		return nil, fmt.Errorf("%w: device %d: %w", ErrUnavailable, c.Device, err)
	}
	b := &Backend{config: c, functions: map[string]cu.Function{}, plans: map[ltKey]ltPlan{}, maps: map[mapKey]tensorMap{}, args: make([]uint64, 0, 64)}
	b.name, err = cu.Device(c.Device).Name()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	b.processors = attribute(c.Device, attributeProcessors)
	b.overlap = !c.NoOverlap && attribute(c.Device, attributeMajor) >= 9
	b.hopper = attribute(c.Device, attributeMajor) == 9
	b.warpgroups = b.hopper && !c.NoWarpgroups
	if b.module, err = cu.LoadData(fatbin); err != nil {
		return nil, fmt.Errorf("%w: loading the kernels: %w", ErrUnavailable, err)
	}
	for name, shared := range functionShared {
		if (strings.HasPrefix(name, "linear_skinny_") || strings.HasPrefix(name, "linear_lora_") || strings.HasPrefix(name, "linear_mlp_") || strings.HasPrefix(name, "residual_cluster")) && !b.hopper {
			continue
		}
		f, err := b.module.Function(name)
		if err != nil {
			return nil, fmt.Errorf("cuda: kernel %s: %w", name, err)
		}
		if shared > 32<<10 { // with a kernel's static shared memory it may exceed the 48 KiB that all may have
			if err := allowShared(f, shared); err != nil {
				return nil, fmt.Errorf("cuda: kernel %s: %w", name, err)
			}
		}
		b.functions[name] = f
	}
	if b.setup, err = cu.MakeStream(cu.NonBlocking); err != nil {
		return nil, fmt.Errorf("cuda: a stream: %w", err)
	}
	switch {
	case c.Working != kernels.BF16:
		b.lt = "float32 runs plain kernels"
	case c.BatchInvariant:
		b.lt = "batch-invariant"
	case c.NoLt:
		b.lt = "cuBLASLt is switched off"
	default:
		if err := ltOpen(); err != nil {
			b.lt = err.Error()
		}
	}
	return b, nil
}

// Close gives the device back. A second Close does nothing.
func (b *Backend) Close() error {
	if b.closed {
		return nil
	}
	defer b.enter()()
	b.closed = true
	b.keep(b.setup.Synchronize())
	for _, p := range b.owned {
		b.keep(cu.MemFree(p))
	}
	for i := range b.events {
		b.keep(cu.DestroyEvent(&b.events[i]))
	}
	b.keep(b.setup.Destroy())
	b.keep(b.module.Unload())
	err := b.err
	if e := release(b.config.Device); err == nil {
		err = e
	}
	return err
}

// Info describes the device.
func (b *Backend) Info() kernels.Info {
	defer b.enter()()
	free, total, err := cu.MemInfo()
	b.keep(err)
	lt := "linears of many tokens by cuBLASLt"
	if b.lt != "" {
		lt = "own kernels only (" + b.lt + ")"
	}
	return kernels.Info{
		Backend: "cuda", Device: fmt.Sprintf("%s, %d multiprocessors, %s: the GPU that the driver lists at %d", b.name, b.processors, lt, b.config.Device),
		Working: b.config.Working, Activation: b.config.Working, BatchInvariant: b.config.BatchInvariant || b.config.Working == kernels.F32,
		MemoryTotal: total, MemoryFree: free,
	}
}

// enter makes the context current and keeps the thread until the function that it returns is called.
func (b *Backend) enter() func() {
	runtime.LockOSThread()
	b.keep(current())
	return runtime.UnlockOSThread
}

// keep notes the first failure.
func (b *Backend) keep(err error) {
	if err == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err == nil {
		b.err = fmt.Errorf("cuda: the device failed: %w", err)
	}
}

func (b *Backend) failure() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.err
}
