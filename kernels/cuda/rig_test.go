//go:build cuda

package cuda

import (
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"testing"
	"unsafe"

	"bhive/kernels"
	"bhive/kernels/cpu"
)

// pair is the device and its oracle.
type pair struct {
	testing.TB
	gpu, cpu *side
	dt       kernels.DType
	rng      *rand.Rand
	block    int // tokens in a KV block
}

// hold keeps the device's context between tests: making one takes longer than most of them.
var hold sync.Once

// need skips a test where there is no GPU.
func need(t testing.TB) {
	t.Helper()
	if _, err := Probe(); err != nil {
		t.Skip(err)
	}
}

// few are backends that a short run's tests share: loading the kernels takes seconds under compute-sanitizer.
var few = map[Config]kernels.Backend{}

// short is what a short run, as compute-sanitizer has the time for, goes through.
func short[T any](all, few []T) []T {
	if testing.Short() {
		return few
	}
	return all
}

func newPair(t testing.TB, c Config) *pair {
	t.Helper()
	need(t)
	if !testing.Short() { // which keeps its backends
		hold.Do(func() { Open(c) })
	}
	g, open := few[c]
	if !open {
		var err error
		if g, err = Open(c); err != nil {
			t.Fatal(err)
		}
		if testing.Short() {
			few[c] = g
		}
	}
	o, err := cpu.Open(cpu.Config{Working: c.Working})
	if err != nil {
		t.Fatal(err)
	}
	p := &pair{t, &side{TB: t, Backend: g, s: g.NewStream(), act: c.Working}, &side{TB: t, Backend: o, s: o.NewStream(), act: kernels.F32}, c.Working, rand.New(rand.NewPCG(1, 2)), 16}
	t.Cleanup(func() {
		if err := p.gpu.s.Sync(); err != nil {
			t.Error(err)
		}
		g.FreeStream(p.gpu.s)
		for _, x := range p.gpu.taken {
			g.Free(x)
		}
		if !testing.Short() {
			if err := g.Close(); err != nil {
				t.Error(err)
			}
		}
		o.Close()
	})
	return p
}

func round(x float32, d kernels.DType) float32 {
	if d == kernels.BF16 {
		return math.Float32frombits(uint32(roundBF16(x)) << 16)
	}
	return x
}

// normal is n values of N(0, scale²), representable in the pair's dtype.
func (p *pair) normal(n int, scale float64) []float32 {
	x := make([]float32, n)
	for i := range x {
		x[i] = round(float32(p.rng.NormFloat64()*scale), p.dt)
	}
	return x
}

func bytesOf[E any](x []E) []byte {
	if len(x) == 0 {
		return nil
	}
	return unsafe.Slice((*byte)(unsafe.Pointer(&x[0])), len(x)*int(unsafe.Sizeof(x[0])))
}

// both makes a tensor on both sides: of the activation dtype, or F32 where d says so.
type both struct{ gpu, cpu kernels.Tensor }

func (p *pair) act(rows, cols int, x []float32) both {
	return both{p.gpu.tensor(p.dt, rows, cols, x), p.cpu.tensor(kernels.F32, rows, cols, x)}
}

func (p *pair) f32(rows, cols int, x []float32) both {
	return both{p.gpu.tensor(kernels.F32, rows, cols, x), p.cpu.tensor(kernels.F32, rows, cols, x)}
}

func (p *pair) working(rows, cols int, x []float32) both {
	return both{p.gpu.tensor(p.dt, rows, cols, x), p.cpu.tensor(p.dt, rows, cols, x)}
}

// garbage is an activation of NaN: what an op does not write shows.
func (p *pair) garbage(rows, cols int) both { return p.act(rows, cols, nans(rows*cols)) }

func nans(n int) []float32 {
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(math.NaN())
	}
	return x
}

type hostMatrix struct {
	rows, cols int
	x          []float32
}

func (m hostMatrix) Rows() int                { return m.rows }
func (m hostMatrix) Cols() int                { return m.cols }
func (m hostMatrix) Row(i int, dst []float32) { copy(dst, m.x[i*m.cols:][:m.cols]) }

type weights struct{ gpu, cpu kernels.Weight }

func (p *pair) weight(out, in, r int) weights {
	p.Helper()
	f := kernels.FormatF32
	if p.dt == kernels.BF16 {
		f = kernels.FormatBF16
	}
	first := out / 3
	spec := kernels.WeightSpec{Parts: []kernels.Matrix{hostMatrix{first, in, p.normal(first*in, 0.2)}, hostMatrix{out - first, in, p.normal((out-first)*in, 0.2)}}, Format: f}
	if r > 0 {
		spec.A = hostMatrix{r, in, p.normal(r*in, 0.2)}
	}
	g, err := p.gpu.NewWeight(spec)
	if err != nil {
		p.Fatal(err)
	}
	c, err := p.cpu.NewWeight(spec)
	if err != nil {
		p.Fatal(err)
	}
	return weights{g, c}
}

type tables struct{ gpu, cpu kernels.AdapterTable }

// adapters fills a table with random B's of ranks; 0 leaves a slot empty.
func (p *pair) adapters(rows int, ranks ...int) tables {
	p.Helper()
	g, err := p.gpu.NewAdapterTable(len(ranks))
	if err != nil {
		p.Fatal(err)
	}
	c, err := p.cpu.NewAdapterTable(len(ranks))
	if err != nil {
		p.Fatal(err)
	}
	for slot, rank := range ranks {
		if rank > 0 {
			b := p.working(1, rank*rows, p.normal(rank*rows, 0.3))
			p.gpu.SetAdapter(p.gpu.s, g, slot, b.gpu, rank)
			p.cpu.SetAdapter(p.cpu.s, c, slot, b.cpu, rank)
		}
	}
	return tables{g, c}
}

func (t tables) ref(offset, out int) (gpu, cpu kernels.BRef) {
	return kernels.BRef{Table: t.gpu, Offset: offset, Out: out}, kernels.BRef{Table: t.cpu, Offset: offset, Out: out}
}

// seq is a sequence's share of a step.
type seq struct{ n, context, adapter int }

type batch struct {
	rec      *kernels.Record
	gpu, cpu kernels.Step
}

// blockOf scatters blocks.
func blockOf(seq, j, blocks int) int { return seq*blocks + (j*7+3)%blocks }

// step builds a step; room is what the bucket's tokens exceed it by.
func (p *pair) step(vocab int, seqs ...seq) *batch {
	p.Helper()
	b := kernels.Bucket{Seqs: len(seqs) + 1}
	for _, s := range seqs {
		b.Tokens += s.n
		b.Blocks = max(b.Blocks, (s.n+s.context+p.block-1)/p.block)
		b.MaxQuery = max(b.MaxQuery, s.n)
	}
	for b.Blocks%7 == 0 {
		b.Blocks++ // blockOf needs it
	}
	b.Tokens += 2
	b.Rows = b.Tokens
	rec := kernels.NewRecord(b, nil)
	t, seg := 0, -1
	for i, s := range seqs {
		for j := range b.Blocks {
			rec.BlockTable[i*b.Blocks+j] = int32(blockOf(i, j, b.Blocks))
		}
		rec.QueryStart[i], rec.Context[i] = int32(t), int32(s.n+s.context)
		if seg < 0 || int(rec.SegAdapter[seg]) != s.adapter {
			seg++
			rec.SegStart[seg], rec.SegAdapter[seg], rec.SegLane[seg] = int32(t), int32(s.adapter), -1
		}
		for j := range s.n {
			at := s.context + j
			rec.Token[t], rec.Feed[t], rec.Position[t] = int32(p.rng.IntN(vocab)), -1, int32(at)
			rec.Seq[t], rec.Adapter[t] = int32(i), int32(s.adapter)
			rec.KVSlot[t] = int32(blockOf(i, at/p.block, b.Blocks)*p.block + at%p.block)
			rec.RowToken[t] = int32(t)
			t++
		}
	}
	rec.QueryStart[len(seqs)], rec.SegStart[seg+1] = int32(t), int32(t)
	rec.Head[kernels.HeadTokens], rec.Head[kernels.HeadSeqs], rec.Head[kernels.HeadSegs], rec.Head[kernels.HeadRows] = int32(t), int32(len(seqs)), int32(seg+1), int32(t)
	x := &batch{rec: rec}
	x.gpu, x.cpu = kernels.Step{Bucket: b}, kernels.Step{Bucket: b}
	p.upload(x)
	return x
}

// upload sends a batch's record to both sides.
func (p *pair) upload(x *batch) {
	for s, step := range map[*side]*kernels.Step{p.gpu: &x.gpu, p.cpu: &x.cpu} {
		if !step.Words.Present() {
			t, err := s.Alloc(kernels.I32, 1, len(x.rec.Words))
			if err != nil {
				p.Fatal(err)
			}
			step.Words = t
		}
		s.Upload(s.s, step.Words, x.rec.Bytes())
		s.sync()
	}
}

func (x *batch) tokens() int { return int(x.rec.Head[kernels.HeadTokens]) }

// same compares the first n rows of a tensor of both sides, atol + rtol·|want|, and that the device wrote nothing past them.
func (p *pair) same(name string, t both, n int, tol float64) {
	p.Helper()
	p.near(name, t, n, tol, tol)
}

// near is same with a tolerance of its own for the difference as a whole, relative to the values as a whole.
func (p *pair) near(name string, t both, n int, tol, whole float64) {
	p.Helper()
	got, want := p.gpu.values(t.gpu), p.cpu.values(t.cpu)
	cols := t.gpu.Cols
	sum, ref := 0.0, 0.0
	for i := range n * cols {
		g, w := float64(got[i]), float64(want[i])
		sum, ref = sum+(g-w)*(g-w), ref+w*w
		if d := math.Abs(g - w); !(d <= tol*(1+math.Abs(w))) {
			p.Fatalf("%s[%d, %d] = %v, the oracle has %v", name, i/cols, i%cols, g, w)
		}
	}
	if e := math.Sqrt(sum / ref); ref > 0 && !(e <= whole) {
		p.Fatalf("%s differs by %.3g as a whole", name, e)
	}
	for i := n * cols; i < len(got); i++ {
		if v := got[i]; v == v {
			p.Fatalf("%s[%d, %d] lies past the counts and is written", name, i/cols, i%cols)
		}
	}
}

// tolerance of an op's result in the pair's dtype.
func (p *pair) tol() float64 {
	if p.dt == kernels.BF16 {
		return 1.2e-2
	}
	return 3e-5
}

var popularities = []struct {
	name  string
	slots []int
}{
	{"none", []int{-1, -1, -1, -1, -1}},
	{"one", []int{2, 2, 2, 2, 2}},
	{"distinct", []int{0, 1, 2, 3, -1}},
	{"uniform", []int{3, 0, 3, 1, 0}},
	{"zipf", []int{0, 0, 0, 1, 2}},
}

var lengths = map[int][]int{1: {1}, 7: {1, 2, 1, 3}, 133: {1, 70, 17, 40, 5}, 989: {700, 1, 200, 80, 8}}

// sizes are the keys of lengths to go through.
func sizes() []int { return short([]int{1, 7, 133, 989}, []int{7, 133}) }

// mixes runs f for both dtypes, ragged sizes and popularities.
func mixes(t *testing.T, f func(p *pair, seqs []seq)) {
	for _, d := range []kernels.DType{kernels.F32, kernels.BF16} {
		t.Run(d.String(), func(t *testing.T) {
			for _, n := range sizes() {
				for _, pop := range popularities {
					t.Run(fmt.Sprintf("%d/%s", n, pop.name), func(t *testing.T) {
						var seqs []seq
						for i, l := range lengths[n] {
							seqs = append(seqs, seq{l, i * 9 % 20, pop.slots[i]})
						}
						f(newPair(t, Config{Working: d}), seqs)
					})
				}
			}
		})
	}
}

// decodes are pure decode steps: sequences of one token with these contexts before them.
func decodes(n int, slot func(i int) int) []seq {
	var out []seq
	for i := range n {
		out = append(out, seq{1, (i * 37) % 300, slot(i)})
	}
	return out
}
