package finetune

import (
	"bhive/adapters"
	"bhive/kernels"
)

// Checkpoint is checkpoint at once.
func (l *Lane) Checkpoint() (c *Checkpoint) {
	l.checkpoint(func(got *Checkpoint, _ error) { c = got })
	l.t.endCopies(l)
	return c
}

// Weights is weights at once.
func (l *Lane) Weights(best bool) (w *adapters.Weights) {
	l.weights(best, func(got *adapters.Weights, _ error) { w = got })
	l.t.endCopies(l)
	return w
}

func (t *Trainer) downloadFloats(x kernels.Tensor) []float32 {
	out := make([]float32, x.Elements())
	t.m.Backend.Download(t.stream, floatBytes(out), x)
	t.sync()
	return out
}
