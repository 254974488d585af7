package cpu

import "bhive/kernels"

// stream runs work as it is enqueued, or records it while it is captured.
type stream struct {
	graph *graph // being captured, or nil
}

// NewStream returns a stream; it holds nothing.
func (b *Backend) NewStream() kernels.Stream { return &stream{} }

// FreeStream drops what the training ops refer to and hold for themselves, so that it can be collected.
func (b *Backend) FreeStream(kernels.Stream) {
	b.linearBackward, b.crossEntropy, b.normBackward, b.expandBackward = linearBackwardTask{}, crossEntropyTask{}, normBackwardTask{}, expandBackwardTask{}
	b.mlpBackward, b.attentionBackward, b.qkvBackward = mlpBackwardTask{}, attentionBackwardTask{}, qkvBackwardTask{}
	b.gradNorm, b.adamW, b.gram = gradNormTask{}, adamWTask{}, gramTask{}
}

func (s *stream) Record() kernels.Event { return event{} }
func (s *stream) WaitFor(kernels.Event) {}
func (s *stream) Sync() error           { return nil }

// event is a point that has always been passed.
type event struct{}

func (event) Done() bool  { return true }
func (event) Wait() error { return nil }

// graph is a captured list of ops.
type graph struct {
	ops []func()
}

func (g *graph) add(op func()) { g.ops = append(g.ops, op) }

func (g *graph) Launch(s kernels.Stream) {
	if outer := recording(s); outer != nil {
		outer.ops = append(outer.ops, g.ops...)
		return
	}
	for _, op := range g.ops {
		op()
	}
}

func (g *graph) Close() { g.ops = nil }

// recording is the graph that s is captured into, or nil.
func recording(s kernels.Stream) *graph { return s.(*stream).graph }

// Capture keeps the ops that f enqueues on s.
func (b *Backend) Capture(s kernels.Stream, f func()) (kernels.Graph, error) {
	st := s.(*stream)
	if st.graph != nil {
		panic("cpu: a capture within a capture")
	}
	g := &graph{}
	st.graph = g
	defer func() { st.graph = nil }()
	f()
	return g, nil
}
