package cpu

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"bhive/kernels"
)

// rig is a backend with the means to fill it.
type rig struct {
	testing.TB
	*Backend
	s   kernels.Stream
	rng *rand.Rand
}

func newRig(t testing.TB, c Config) *rig {
	t.Helper()
	b, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return &rig{t, b, b.NewStream(), rand.New(rand.NewPCG(1, 2))}
}

func (r *rig) alloc(d kernels.DType, rows, cols int) kernels.Tensor {
	r.Helper()
	t, err := r.Alloc(d, rows, cols)
	if err != nil {
		r.Fatal(err)
	}
	return t
}

// normal is n values of N(0, scale²).
func (r *rig) normal(n int, scale float64) []float32 {
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(r.rng.NormFloat64() * scale)
	}
	return x
}

// tensor is a float32 tensor with the given values.
func (r *rig) tensor(rows, cols int, x []float32) kernels.Tensor {
	t := r.alloc(kernels.F32, rows, cols)
	copy(values(t), x)
	return t
}

func (r *rig) random(rows, cols int, scale float64) kernels.Tensor {
	return r.tensor(rows, cols, r.normal(rows*cols, scale))
}

// garbage is a float32 tensor filled with NaN: what an op does not write shows.
func (r *rig) garbage(rows, cols int) kernels.Tensor {
	t := r.alloc(kernels.F32, rows, cols)
	for i := range values(t) {
		values(t)[i] = float32(math.NaN())
	}
	return t
}

func values(t kernels.Tensor) []float32 {
	return elements[float32](t, kernels.F32, "test")[:t.Rows*t.Stride]
}

func (r *rig) workingTensor(rows, cols int, x []float32) kernels.Tensor {
	t := r.alloc(r.config.Working, rows, cols)
	r.workingOf(t, "test").put(r.k, 0, x)
	return t
}

// widened is memory of the working dtype as float32.
func (r *rig) widened(w working, n int) []float32 {
	x := make([]float32, n)
	if w.h != nil {
		r.k.BF16ToF32(x, w.h[:n])
	} else {
		copy(x, w.f[:n])
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
func (r *rig) host(rows, cols int) hostMatrix {
	return hostMatrix{rows, cols, r.normal(rows*cols, 0.2)}
}
func (r *rig) weight(out, in, a int, f kernels.Format) *weight {
	r.Helper()
	spec := kernels.WeightSpec{Parts: []kernels.Matrix{r.host(out, in)}, Format: f}
	if a > 0 {
		spec.A = r.host(a, in)
	}
	w, err := r.NewWeight(spec)
	if err != nil {
		r.Fatal(err)
	}
	return w.(*weight)
}

// wide is [W; A] as the backend holds it, in float64.
func (r *rig) wide(w *weight) [][]float64 {
	out := make([][]float64, w.rows())
	row := make([]float32, w.in)
	for i := range out {
		if i < w.out {
			w.row(i, row)
		} else {
			copy(row, r.widened(w.a.at((i-w.out)*w.in), w.in))
		}
		out[i] = f64(row)
	}
	return out
}

func f64(x []float32) []float64 {
	y := make([]float64, len(x))
	for i, v := range x {
		y[i] = float64(v)
	}
	return y
}

func dot64(a, b []float64) float64 {
	s := 0.0
	for i, v := range a {
		s += v * b[i]
	}
	return s
}

// seq is a sequence's share of a step.
type seq struct {
	n       int // tokens in this step
	context int // tokens before them
	adapter int // slot or −1
	lane    int // or −1
}

// batch is a step on the host and on the device.
type batch struct {
	rec  *kernels.Record
	step kernels.Step
}

const blockTokens = 8

// step builds a step of the given sequences. Blocks are handed out so that neighbours lie apart, except that every third
// block follows its predecessor.
func (r *rig) step(vocab int, seqs ...seq) *batch {
	r.Helper()
	b := kernels.Bucket{Seqs: len(seqs) + 1, Rows: 1, Training: true}
	for _, s := range seqs {
		b.Tokens += s.n
		b.Blocks = max(b.Blocks, (s.n+s.context+blockTokens-1)/blockTokens)
		b.MaxQuery = max(b.MaxQuery, s.n)
	}
	b.Tokens += 2
	b.Rows = b.Tokens
	words := r.alloc(kernels.I32, 1, kernels.RecordWords(b))
	rec := kernels.NewRecord(b, ints(words, "test")[:words.Cols])
	t, seg := 0, -1
	for i, s := range seqs {
		for j := range b.Blocks {
			rec.BlockTable[i*b.Blocks+j] = int32(blockOf(i, j, b.Blocks))
		}
		rec.QueryStart[i] = int32(t)
		rec.Context[i] = int32(s.n + s.context)
		if seg < 0 || int(rec.SegAdapter[seg]) != s.adapter || int(rec.SegLane[seg]) != s.lane {
			seg++
			rec.SegStart[seg], rec.SegAdapter[seg], rec.SegLane[seg] = int32(t), int32(s.adapter), int32(s.lane)
		}
		for j := range s.n {
			p := s.context + j
			rec.Token[t] = int32(r.rng.IntN(max(1, vocab)))
			rec.Feed[t], rec.Position[t], rec.Seq[t], rec.Adapter[t] = -1, int32(p), int32(i), int32(s.adapter)
			rec.KVSlot[t] = int32(blockOf(i, p/blockTokens, b.Blocks)*blockTokens + p%blockTokens)
			rec.Label[t] = -1
			t++
		}
	}
	rec.QueryStart[len(seqs)] = int32(t)
	rec.SegStart[seg+1] = int32(t)
	rec.Head[kernels.HeadTokens], rec.Head[kernels.HeadSeqs], rec.Head[kernels.HeadSegs] = int32(t), int32(len(seqs)), int32(seg+1)
	return &batch{rec, kernels.Step{Bucket: b, Words: words}}
}

// blockOf is the place of a sequence's block: pairs of neighbours, far from each other.
func blockOf(seq, j, blocks int) int { return seq*2*blocks + j/2*4%max(1, 2*blocks-2) + j%2 }

func (b *batch) tokens() int { return int(b.rec.Head[kernels.HeadTokens]) }

// adapters fills a table with random B's over rows rows of ranks ranks; a rank of 0 leaves the slot empty.
func (r *rig) adapters(rows int, ranks ...int) kernels.AdapterTable {
	r.Helper()
	table, err := r.NewAdapterTable(len(ranks))
	if err != nil {
		r.Fatal(err)
	}
	for slot, rank := range ranks {
		if rank > 0 {
			r.SetAdapter(r.s, table, slot, r.workingTensor(1, rank*rows, r.normal(rank*rows, 0.3)), rank)
		}
	}
	return table
}

// addExpand adds B·z to y in float64, straight from the definition.
func (r *rig) addExpand(y []float64, z []float32, ref kernels.BRef, slot int) {
	if slot < 0 || ref.Table == nil {
		return
	}
	e := ref.Table.(*adapterTable).entries[slot]
	for i := range y {
		b := r.widened(e.block.at(e.rank*(ref.Offset+i)), e.rank)
		y[i] += dot64(f64(b), f64(z[:e.rank]))
	}
}

// near fails unless |got − want| ≤ tol·(1 + |want|).
func near(t testing.TB, name string, got []float32, want []float64, tol float64) {
	t.Helper()
	for i, w := range want {
		if d := math.Abs(float64(got[i]) - w); !(d <= tol*(1+math.Abs(w))) {
			t.Fatalf("%s[%d] = %v, want %v", name, i, got[i], w)
		}
	}
}

// popularities are ways in which adapters are spread over the sequences of a step, with four slots of ranks 4, 8, 3, 8.
var popularities = map[string][]int{
	"none":     {-1, -1, -1, -1, -1},
	"one":      {2, 2, 2, 2, 2},
	"distinct": {0, 1, 2, 3, -1},
	"uniform":  {3, 0, 3, 1, 0},
	"zipf":     {0, 0, 0, 1, 2},
}

var ranks = []int{4, 8, 3, 8}

// lengths are the tokens of a step's sequences, by the step's tokens.
var lengths = map[int][]int{1: {1}, 7: {1, 2, 1, 3}, 133: {1, 70, 17, 40, 5}}

// mixes runs f for both working dtypes, ragged sizes and popularities.
func mixes(t *testing.T, f func(r *rig, seqs []seq)) {
	for _, d := range []kernels.DType{kernels.F32, kernels.BF16} {
		for n, ls := range lengths {
			for name, slots := range popularities {
				t.Run(fmt.Sprintf("%s/%d/%s", d, n, name), func(t *testing.T) {
					var seqs []seq
					for i, l := range ls {
						seqs = append(seqs, seq{n: l, context: i * 9 % 20, adapter: slots[i], lane: slots[i]})
					}
					f(newRig(t, Config{Threads: 2, Working: d}), seqs)
				})
			}
		}
	}
}

// tolerance against float64, in the working dtype.
const tol = 2e-5
