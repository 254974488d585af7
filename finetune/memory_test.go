package finetune

import (
	"fmt"
	"reflect"
	"testing"

	"bhive/adapters"
	"bhive/infer"
	"bhive/infer/checkpoint"
	"bhive/kernels"
)

// TestMemoryIsWhole: in models of several shapes no op of passes and samples reads what another tensor in the same place has overwritten. Nothing is
// computed: the device only looks at what each op reads and writes.
func TestMemoryIsWhole(t *testing.T) {
	llama, err := infer.RandomConfig("llama-3-8b")
	if err != nil {
		t.Fatal(err)
	}
	shape := func(change func(*checkpoint.Config)) checkpoint.Config {
		c := llama
		c.Layers = 4
		change(&c)
		return c
	}
	for name, cc := range map[string]checkpoint.Config{
		"llama-3-8b":   llama,
		"q and k norm": shape(func(c *checkpoint.Config) { c.QKNorm = true }),
		"wide heads":   shape(func(c *checkpoint.Config) { c.Heads, c.KVHeads, c.FeedForward = 64, 64, 2048 }),
		"one layer":    shape(func(c *checkpoint.Config) { c.Layers = 1 }),
		"small": shape(func(c *checkpoint.Config) {
			c.Hidden, c.Heads, c.KVHeads, c.HeadDim, c.FeedForward = 576, 9, 3, 64, 1536
		}),
	} {
		for _, plan := range infer.SavePlans {
			for _, tokens := range []int{100, 4096} {
				t.Run(fmt.Sprintf("%s/%s/%d", name, plan, tokens), func(t *testing.T) {
					be := &flow{t: t, whole: map[string]bool{}}
					tr := newTrainer(t, shapeModel(be, cc), TrainerConfig{Lanes: 1, BatchTokens: tokens, MemoryPlan: plan})
					be.name(tr.mem)
					var l *Lane
					o := LaneOptions{Rank: 16, Alpha: 16, Train: randomExamples(1, 6, cc.Vocab), Held: randomExamples(2, 2, cc.Vocab), Batching: Batching{Examples: 3, Batches: 1}, EvalSteps: 1,
						Schedule: Schedule{Kind: ScheduleConstant, Rate: 1, Steps: 2}, Report: func(Report) {
							tr.Sample(l, false, [][]int{{1, 2}}, 2, func(int) bool { return false }, func([][]int) {})
						}}
					l = addLane(t, tr, o)
					runUnits(t, tr)
					if be.ops < 30*cc.Layers || be.reads < be.ops {
						t.Errorf("%d ops that read %d tensors", be.ops, be.reads)
					}
				})
			}
		}
	}
}

func shapeModel(be kernels.Backend, c checkpoint.Config) *infer.Model {
	m := &infer.Model{Backend: be, Config: c, Positions: c.MaxPositions, Geometry: infer.GeometryOf(c), Basis: &adapters.Basis{R: 64},
		Head: shapeWeight{c.Vocab, c.Hidden, 0}}
	w := func(site adapters.Site, in int) kernels.Weight { return shapeWeight{m.SiteOut(site), in, 64} }
	l := infer.Layer{AttnIn: w(adapters.AttnIn, c.Hidden), AttnOut: w(adapters.AttnOut, c.Heads*c.HeadDim), MLPIn: w(adapters.MLPIn, c.Hidden), MLPDown: w(adapters.MLPDown, c.FeedForward)}
	for range c.Layers {
		m.Layers = append(m.Layers, l)
	}
	return m
}

type shapeWeight struct{ out, in, r int }

func (w shapeWeight) Out() int     { return w.out }
func (w shapeWeight) In() int      { return w.in }
func (w shapeWeight) R() int       { return w.r }
func (w shapeWeight) Bytes() int64 { return 0 }

// flow is a device that computes nothing and sees that each op's tensors are whole.
type flow struct {
	kernels.Backend // none: what is not below is not called
	t               *testing.T
	places          []place
	whole           map[string]bool
	ops, reads      int
}

// place is a tensor's in the memory of training, bytes [from, to).
type place struct {
	name     string
	from, to int64
}

func (p place) Bytes() int64 { return p.to - p.from }

// name tells the tensors of training apart, which are views of one buffer. Layers that share a tensor give it one name.
func (f *flow) name(mem *infer.Training) {
	seen := map[string]bool{}
	name := func(name string, x *kernels.Tensor) {
		size := int64(x.DType.Size())
		p := place{fmt.Sprintf("%s at %d", name, x.Off*size), x.Off * size, (x.Off + x.Elements()) * size}
		if x.Buf = p; !seen[p.name] {
			seen[p.name] = true
			f.places = append(f.places, p)
		}
		x.Off = 0
	}
	for _, c := range []kernels.KVCache{mem.Cache, mem.SampleCache} {
		cache := c.(*shapeCache)
		name("cache", &cache.spec.In)
	}
	tensors := func(of string, v any) {
		s := reflect.ValueOf(v).Elem()
		for i := range s.NumField() {
			if !s.Type().Field(i).IsExported() {
				continue
			}
			if x, ok := s.Field(i).Addr().Interface().(*kernels.Tensor); ok && x.Present() {
				name(of+s.Type().Field(i).Name, x)
			}
		}
	}
	for i := range mem.Save.Layers {
		tensors("", &mem.Save.Layers[i])
	}
	tensors("", mem.Save)
	tensors("", mem.State)
	tensors("", mem)
	tensors("sample ", mem.Sample)
	for i := range mem.Sample.Sampled {
		tensors("sampled ", &mem.Sample.Sampled[i])
	}
	for site := range adapters.NumSites {
		if x := &mem.State.YZ[site]; site == adapters.MLPIn && x.Present() {
			name("GateUp", x) // the linear's output and gate and up are one
		} else if x.Present() {
			name(fmt.Sprintf("YZ %d", site), x)
		}
		name(fmt.Sprintf("sample YZ %d", site), &mem.Sample.YZ[site])
	}
}

// op checks what an op reads, before and after it has written.
func (f *flow) op(what string, reads []kernels.Tensor, writes ...kernels.Tensor) {
	f.ops++
	check := func(list []kernels.Tensor) {
		for _, x := range list {
			if p, ok := x.Buf.(place); ok {
				f.reads++
				if !f.whole[p.name] {
					f.t.Errorf("%s: %s is not whole", what, p.name)
				}
			}
		}
	}
	check(reads)
	for _, x := range writes {
		p, ok := x.Buf.(place)
		if !ok {
			continue
		}
		for _, o := range f.places {
			if o.from < p.to && p.from < o.to {
				f.whole[o.name] = false
			}
		}
		f.whole[p.name] = true
	}
	check(reads)
	check(writes)
}

type list = []kernels.Tensor

func (f *flow) Info() kernels.Info {
	return kernels.Info{Working: kernels.BF16, Activation: kernels.BF16, MemoryFree: 1 << 60}
}

type shapeCache struct{ spec kernels.KVSpec }

func (c *shapeCache) Spec() kernels.KVSpec { return c.spec }
func (c *shapeCache) Bytes() int64         { return 0 }

func at(c kernels.KVCache) kernels.Tensor { return c.Spec().In }

type shapeStream struct{}

func (shapeStream) Record() kernels.Event { return shapeStream{} }
func (shapeStream) WaitFor(kernels.Event) {}
func (shapeStream) Sync() error           { return nil }
func (shapeStream) Done() bool            { return true }
func (shapeStream) Wait() error           { return nil }

func (f *flow) Alloc(d kernels.DType, rows, cols int) (kernels.Tensor, error) {
	return kernels.Tensor{Buf: shapeWeight{}, DType: d, Rows: rows, Cols: cols, Stride: cols}, nil
}
func (f *flow) Pinned(n int) ([]byte, error)                                                 { return make([]byte, n), nil }
func (f *flow) FreePinned([]byte)                                                            {}
func (f *flow) Free(kernels.Tensor)                                                          {}
func (f *flow) NewStream() kernels.Stream                                                    { return shapeStream{} }
func (f *flow) FreeStream(kernels.Stream)                                                    {}
func (f *flow) NewKVCache(s kernels.KVSpec) (kernels.KVCache, error)                         { return &shapeCache{s}, nil }
func (f *flow) FreeKVCache(kernels.KVCache)                                                  {}
func (f *flow) NewAdapterTable(int) (kernels.AdapterTable, error)                            { return nil, nil }
func (f *flow) FreeAdapterTable(kernels.AdapterTable)                                        {}
func (f *flow) NewLaneTable(int) (kernels.LaneTable, error)                                  { return nil, nil }
func (f *flow) FreeLaneTable(kernels.LaneTable)                                              {}
func (f *flow) LossTokens(tokens int, _ kernels.Weight) int                                  { return min(tokens, 512) }
func (f *flow) Reduce(kernels.Stream, kernels.Tensor, kernels.Weight)                        {}
func (f *flow) GradNorm(kernels.Stream, kernels.Tensor, kernels.LaneTable)                   {}
func (f *flow) AdamW(kernels.Stream, kernels.AdamWArgs)                                      {}
func (f *flow) Upload(_ kernels.Stream, x kernels.Tensor, _ []byte)                          { f.op("upload", nil, x) }
func (f *flow) Download(_ kernels.Stream, _ []byte, x kernels.Tensor)                        { f.op("download", list{x}) }
func (f *flow) Zero(_ kernels.Stream, x kernels.Tensor)                                      { f.op("zero", nil, x) }
func (f *flow) Copy(_ kernels.Stream, dst, src kernels.Tensor)                               { f.op("copy", list{src}, dst) }
func (f *flow) SetLane(kernels.Stream, kernels.LaneTable, int, kernels.Tensor, int, float32) {}
func (f *flow) SetAdapter(kernels.Stream, kernels.AdapterTable, int, kernels.Tensor, int)    {}

func (f *flow) Embed(_ kernels.Stream, x kernels.Tensor, _ kernels.Weight, _ kernels.Sampled, _ kernels.Step) {
	f.op("embed", nil, x)
}
func (f *flow) RMSNorm(_ kernels.Stream, y, x, _, rstd kernels.Tensor, _ float32, _ kernels.Step) {
	f.op("norm", list{x}, y, rstd)
}
func (f *flow) Linear(_ kernels.Stream, yz, x kernels.Tensor, w kernels.Weight, _ kernels.Step) {
	if x.Cols != w.In() || yz.Cols != w.Out()+w.R() {
		f.t.Errorf("linear of %d×%d: [%d] to [%d]", w.In(), w.Out(), x.Cols, yz.Cols)
	}
	f.op("linear", list{x}, yz)
}
func (f *flow) LinearRows(_ kernels.Stream, y, x kernels.Tensor, _ kernels.Weight, _ kernels.Step) {
	f.op("linear rows", list{x}, y)
}
func (f *flow) GatherRows(_ kernels.Stream, y, x kernels.Tensor, _ kernels.Step) {
	f.op("gather", list{x}, y)
}
func (f *flow) QKV(_ kernels.Stream, a kernels.QKVArgs, _ kernels.Step) {
	f.op("qkv", list{a.YZ}, a.Q, at(a.Cache), a.Pre)
}
func (f *flow) Attention(_ kernels.Stream, a kernels.AttentionArgs, _ kernels.Step) {
	f.op("attention", list{a.Q, at(a.Cache)}, a.Out, a.LSE)
}
func (f *flow) ResidualNorm(_ kernels.Stream, a kernels.ResidualNormArgs, _ kernels.Step) {
	f.op("residual", list{a.X, a.YZ, a.Carry}, a.Out, a.Normed, a.Rstd, a.Carry)
}
func (f *flow) MLP(_ kernels.Stream, a kernels.MLPArgs, _ kernels.Step) {
	f.op("mlp", list{a.YZ}, a.Act, a.GateUp)
}
func (f *flow) Sample(_ kernels.Stream, out kernels.Sampled, logits kernels.Tensor, _ kernels.SamplerState, _ kernels.Step) {
	f.op("sample", list{logits}, out.Token, out.Logprob)
}
func (f *flow) CrossEntropy(_ kernels.Stream, nll, dh, h, logits kernels.Tensor, _ kernels.Weight, _, _ int, _ kernels.Step) {
	f.op("cross entropy", list{h}, logits, nll, dh)
}
func (f *flow) NormBackward(_ kernels.Stream, dx, dy, x, _, rstd kernels.Tensor, _ kernels.Step) {
	f.op("norm backward", list{dx, dy, x, rstd}, dx)
}
func (f *flow) ExpandBackward(_ kernels.Stream, a kernels.ExpandBackwardArgs, _ kernels.Step) {
	f.op("expand backward", list{a.DYZ, a.Z}, a.DYZ)
}
func (f *flow) LinearBackward(_ kernels.Stream, dx, dyz kernels.Tensor, w kernels.Weight, _ bool, _ kernels.Step) {
	if dx.Cols != w.In() || dyz.Cols != w.Out()+w.R() {
		f.t.Errorf("linear backward of %d×%d: [%d] to [%d]", w.In(), w.Out(), dyz.Cols, dx.Cols)
	}
	f.op("linear backward", list{dyz}, dx)
}
func (f *flow) MLPBackward(_ kernels.Stream, dgu, da, gateUp kernels.Tensor, _ kernels.Step) {
	f.op("mlp backward", list{da, gateUp}, dgu)
}
func (f *flow) AttentionBackward(_ kernels.Stream, a kernels.AttentionBackwardArgs, _ kernels.Step) {
	f.op("attention backward", list{a.DO, a.O, a.Q, a.LSE, at(a.Cache)}, a.DQ, a.DK, a.DV)
}
func (f *flow) QKVBackward(_ kernels.Stream, a kernels.QKVBackwardArgs, _ kernels.Step) {
	f.op("qkv backward", list{a.DQ, a.DK, a.DV, a.Pre}, a.DY)
}
