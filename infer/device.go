package infer

import (
	"fmt"

	"bhive/adapters"
	"bhive/kernels"
)

// Device is the adapter memory of a backend, as an adapters.Pool needs it: B's in blocks of the working dtype, and the table of
// adapter slots that steps read. Its methods are called on the goroutine that calls ops.
type Device struct {
	Table kernels.AdapterTable

	be      kernels.Backend
	serving kernels.Stream // steps run here; slots change in its order
	copies  kernels.Stream
	dtype   kernels.DType
	inPlace bool
	freed   []freedBlock

	blocks arena          // of region, where Reserve took one
	region kernels.Tensor // [1, elements]
	host   hostArena      // pinned memory, where Reserve took some
}

// freedBlock waits for the work that was enqueued before it was freed.
type freedBlock struct {
	tensor kernels.Tensor
	after  [2]kernels.Event
}

// NewDevice makes a table of slots for steps on the serving stream.
func NewDevice(be kernels.Backend, serving kernels.Stream, slots int) (*Device, error) {
	t, err := be.NewAdapterTable(slots)
	if err != nil {
		return nil, fmt.Errorf("making a table of %d adapter slots: %w", slots, err)
	}
	info := be.Info()
	return &Device{Table: t, be: be, serving: serving, copies: be.NewStream(), dtype: info.Working, inPlace: info.CopyInPlace}, nil
}

// DType is the type in which B's are packed for this device.
func (d *Device) DType() adapters.DType { return PackType(d.dtype) }

// PackType is a device's working type as adapters name it.
func PackType(working kernels.DType) adapters.DType {
	switch working {
	case kernels.BF16:
		return adapters.BF16
	case kernels.F32:
		return adapters.F32
	}
	panic("infer: adapters have no working type " + working.String())
}

// Reserve takes device memory for B's and pinned memory for those beside them at once, so that neither allocating nor uploading one waits for
// the driver later. On a device that shares the host's memory it does nothing. Errors: kernels.ErrNoMemory, with nothing taken.
// Close gives both back.
func (d *Device) Reserve(deviceBytes, hostBytes int64) error {
	if d.inPlace {
		return nil
	}
	t, err := d.be.Alloc(d.dtype, 1, int(deviceBytes/int64(d.dtype.Size())))
	if err != nil {
		return fmt.Errorf("reserving %d MiB of device memory for adapters: %w", deviceBytes>>20, err)
	}
	d.region, d.blocks = t, newArena(deviceBytes/alignBlocks*alignBlocks)
	if err := d.host.open(d.be, hostBytes); err != nil {
		d.be.Free(d.region)
		d.region = kernels.Tensor{}
		return fmt.Errorf("reserving %d MiB of pinned memory for adapters: %w", hostBytes>>20, err)
	}
	return nil
}

// AllocHost returns pinned memory, or nil where none is left. It may be called from any goroutine.
func (d *Device) AllocHost(bytes int64) []byte { return d.host.take(bytes) }

// FreeHost gives back what AllocHost returned. It may be called from any goroutine.
func (d *Device) FreeHost(b []byte) { d.host.give(b) }

// Alloc reserves a block of bytes, or returns adapters.ErrNoMemory, or adapters.ErrMemoryBusy where that may change by itself.
func (d *Device) Alloc(bytes int64) (adapters.Block, error) {
	size := int64(d.dtype.Size())
	if bytes <= 0 || bytes%size != 0 {
		panic(fmt.Sprintf("infer: an adapter block of %d bytes", bytes))
	}
	d.reap(false)
	if d.region.Present() {
		at, ok := d.blocks.take(bytes)
		switch {
		case ok:
			t := d.region
			t.Off, t.Cols, t.Stride = t.Off+at/size, int(bytes/size), int(bytes/size)
			return t, nil
		case len(d.freed) > 0:
			return nil, fmt.Errorf("%w: %d bytes for an adapter", adapters.ErrMemoryBusy, bytes)
		}
		return nil, fmt.Errorf("%w: no run of %d bytes for an adapter", adapters.ErrNoMemory, bytes)
	}
	t, err := d.be.Alloc(d.dtype, 1, int(bytes/size))
	if err != nil && len(d.freed) > 0 {
		d.reap(true)
		t, err = d.be.Alloc(d.dtype, 1, int(bytes/size))
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %d bytes for an adapter: %w", adapters.ErrNoMemory, bytes, err)
	}
	return t, nil
}

// Free gives a block back once the work enqueued so far has passed.
func (d *Device) Free(b adapters.Block) {
	d.reap(false)
	d.freed = append(d.freed, freedBlock{b.(kernels.Tensor), [2]kernels.Event{d.serving.Record(), d.copies.Record()}})
}

// reap frees the blocks whose work has passed, or with wait all of them.
func (d *Device) reap(wait bool) {
	kept := d.freed[:0]
	for _, f := range d.freed {
		if wait {
			// An error of the stream is reported by the step that syncs it.
			_, _ = f.after[0].Wait(), f.after[1].Wait()
		} else if !f.after[0].Done() || !f.after[1].Done() {
			kept = append(kept, f)
			continue
		}
		if size := int64(d.dtype.Size()); d.region.Present() {
			d.blocks.give((f.tensor.Off-d.region.Off)*size, f.tensor.Elements()*size)
		} else {
			d.be.Free(f.tensor)
		}
	}
	d.freed = kept
}

// uploadPiece is the most bytes of one copy: a step's own uploads wait for one of them at most.
const uploadPiece = 4 << 20

// Upload starts a copy of src on the copy stream. done reports its end and must be asked until it is true.
func (d *Device) Upload(b adapters.Block, src []byte) (done func() bool) {
	var pinned []byte
	if !d.inPlace && !d.host.owns(src) {
		// Without pinned memory the copy still happens, only not beside the host's work.
		if p, err := d.be.Pinned(len(src)); err == nil {
			pinned = p
			copy(pinned, src)
			src = pinned
		}
	}
	t, size := b.(kernels.Tensor), int64(d.dtype.Size())
	for len(src) > 0 {
		n := min(len(src), uploadPiece)
		d.be.Upload(d.copies, t, src[:n])
		src = src[n:]
		t.Off, t.Cols = t.Off+int64(n)/size, t.Cols-n/int(size)
		t.Stride = t.Cols
	}
	ready := d.copies.Record()
	return func() bool {
		if !ready.Done() {
			return false
		}
		if pinned != nil {
			d.be.FreePinned(pinned)
			pinned = nil
		}
		return true
	}
}

// SetSlot points a slot at a block from the next step on; nil empties it.
func (d *Device) SetSlot(slot int, b adapters.Block, rank int) {
	var t kernels.Tensor
	if b != nil {
		t = b.(kernels.Tensor)
	}
	d.be.SetAdapter(d.serving, d.Table, slot, t, rank)
}

// Close frees the table, the copy stream, what still waits to be freed and what was reserved; the serving stream is its maker's. The pool and
// the engine must have been closed, and the streams be empty. It may be called twice.
func (d *Device) Close() {
	d.reap(true)
	if d.region.Present() {
		d.be.Free(d.region)
		d.region = kernels.Tensor{}
	}
	d.host.close()
	if d.Table != nil {
		d.be.FreeAdapterTable(d.Table)
		d.be.FreeStream(d.copies)
		d.Table = nil
	}
}
