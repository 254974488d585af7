package kerneltest

import (
	"errors"
	"testing"

	"bhive/kernels"
)

// noGraphs is a backend on which no capture succeeds.
type noGraphs struct{ kernels.Backend }

func (noGraphs) Capture(kernels.Stream, func()) (kernels.Graph, error) {
	return nil, kernels.ErrNoMemory
}

// TestFailedCapture: a capture that fails gives no graph, which whoever closes what there is would give back.
func TestFailedCapture(t *testing.T) {
	l := NewLedger(noGraphs{})
	g, err := l.Capture(nil, func() {})
	if g != nil || !errors.Is(err, kernels.ErrNoMemory) {
		t.Errorf("a graph: %v; %v, want %v", g != nil, err, kernels.ErrNoMemory)
	}
	if n := l.Live(); len(n) != 0 {
		t.Errorf("not given back: %v", n)
	}
}
