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

// Alloc reserves a block of bytes, or returns adapters.ErrNoMemory.
func (d *Device) Alloc(bytes int64) (adapters.Block, error) {
	size := int64(d.dtype.Size())
	if bytes <= 0 || bytes%size != 0 {
		panic(fmt.Sprintf("infer: an adapter block of %d bytes", bytes))
	}
	d.reap(false)
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
		d.be.Free(f.tensor)
	}
	d.freed = kept
}

// Upload starts a copy of src on the copy stream. done reports its end and must be asked until it is true.
func (d *Device) Upload(b adapters.Block, src []byte) (done func() bool) {
	var pinned []byte
	if !d.inPlace {
		// Without pinned memory the copy still happens, only not beside the host's work.
		if p, err := d.be.Pinned(len(src)); err == nil {
			pinned = p
			copy(pinned, src)
			src = pinned
		}
	}
	d.be.Upload(d.copies, b.(kernels.Tensor), src)
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

// Close frees the table, the copy stream and what still waits to be freed; the serving stream is its maker's. The pool and the engine must
// have been closed, and the streams be empty. It may be called twice.
func (d *Device) Close() {
	d.reap(true)
	if d.Table != nil {
		d.be.FreeAdapterTable(d.Table)
		d.be.FreeStream(d.copies)
		d.Table = nil
	}
}
