package cpu

import "bhive/kernels"

// recordKey is where a step's record lies.
type recordKey struct {
	buf    *buffer
	off    int64
	bucket kernels.Bucket
}

// record is the step's record, laid out over its words on the device. Layouts are kept, so that a step allocates nothing.
func (b *Backend) record(step kernels.Step) *kernels.Record {
	key := recordKey{step.Words.Buf.(*buffer), step.Words.Off, step.Bucket}
	if key == b.lastKey {
		return b.lastRecord
	}
	r, ok := b.records[key]
	if !ok {
		r = kernels.NewRecord(step.Bucket, ints(step.Words, "step record")[:kernels.RecordWords(step.Bucket)])
		b.records[key] = r
	}
	b.lastKey, b.lastRecord = key, r
	return r
}

func (b *Backend) forgetRecords(m *buffer) {
	for k := range b.records {
		if k.buf == m {
			delete(b.records, k)
		}
	}
	b.lastKey, b.lastRecord = recordKey{}, nil
}

func tokens(r *kernels.Record) int { return int(r.Head[kernels.HeadTokens]) }
