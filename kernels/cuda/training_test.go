//go:build cuda

package cuda

import (
	"math"

	"bhive/kernels"
)

// training makes a step's record one of training: labels, losses, and lanes that are the adapters' slots. Every fifth token has no label.
func (p *pair) training(vocab int, seqs ...seq) *batch {
	p.Helper()
	plain := p.step(vocab, seqs...)
	bucket := plain.gpu.Bucket
	bucket.Training = true
	rec := kernels.NewRecord(bucket, nil)
	copy(rec.Words, plain.rec.Words) // what training adds lies at the end
	for i := range plain.tokens() {
		rec.Label[i], rec.Loss[i] = int32(p.rng.IntN(vocab)), kernels.Bits(float32(p.rng.Float64()))
		if i%5 == 2 {
			rec.Label[i] = -1
		}
	}
	copy(rec.SegLane, rec.SegAdapter[:rec.Head[kernels.HeadSegs]])
	x := &batch{rec: rec, gpu: kernels.Step{Bucket: bucket}, cpu: kernels.Step{Bucket: bucket}}
	p.upload(x)
	return x
}

// ragged is n rows of noise and then NaN, which may not be read.
func (p *pair) ragged(rows, n, cols int) []float32 {
	x := p.normal(rows*cols, 1)
	copy(x[n*cols:], nans((rows-n)*cols))
	return x
}

// repeats runs an op some times and holds the results bit for bit.
func (p *pair) repeats(name string, t kernels.Tensor, run func()) {
	p.Helper()
	before := p.gpu.values(t)
	restore := append([]float32(nil), before...)
	run()
	first := p.gpu.values(t)
	for range 3 {
		back := p.gpu.tensor(t.DType, t.Rows, t.Cols, restore)
		p.gpu.Copy(p.gpu.s, t, back)
		run()
		for i, v := range p.gpu.values(t) {
			if math.Float32bits(v) != math.Float32bits(first[i]) {
				p.Fatalf("%s[%d] is %v and then %v", name, i, first[i], v)
			}
		}
		p.gpu.Free(back)
	}
}

var trainingConfigs = []Config{{Working: kernels.F32}, {Working: kernels.BF16}, {Working: kernels.BF16, BatchInvariant: true}}
