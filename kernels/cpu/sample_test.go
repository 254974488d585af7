package cpu

import (
	"fmt"
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"bhive/kernels"
)

// draws is a rig for sampling rows of logits.
type draws struct {
	*rig
	b      *batch
	v      int
	logits kernels.Tensor
	out    kernels.Sampled
	state  kernels.SamplerState
}

func newDraws(r *rig, rows, v int) *draws {
	d := &draws{rig: r, v: v, b: r.step(v, seq{n: rows, adapter: -1, lane: -1}), logits: r.alloc(kernels.F32, rows+2, v), out: r.sampled(rows + 2),
		state: r.samplerState(rows+2, v)}
	d.b.rec.Head[kernels.HeadRows] = int32(rows)
	for i := range rows {
		rec := d.b.rec
		rec.RowForced[i], rec.RowSampler[i], rec.RowDraw[i] = -1, int32(i), int32(i)
		rec.RowTemperature[i], rec.RowTopP[i], rec.RowRepetition[i] = kernels.Bits(1), kernels.Bits(1), kernels.Bits(1)
		for j := range 8 {
			ints(d.state.BiasID, "test")[i*8+j] = -1
		}
	}
	return d
}

func (d *draws) row(i int) []float32 { return values(d.logits)[i*d.v:][:d.v] }

func (d *draws) run() []int32 {
	d.Sample(d.s, d.out, d.logits, d.state, d.b.step)
	return ints(d.out.Token, "test")[:d.b.rec.Head[kernels.HeadRows]]
}

// reference draws by the definition in kernels.Backend, everything sorted, in float64.
func reference(x []float32, seed uint64, draw uint32, temperature, minP float64, topK int, topP float64) []int32 {
	type entry struct {
		id int32
		x  float64
	}
	var es []entry
	top := math.Inf(-1)
	for i, v := range x {
		es = append(es, entry{int32(i), float64(v) / temperature})
		top = max(top, float64(v)/temperature)
	}
	slices.SortStableFunc(es, func(a, b entry) int {
		switch {
		case a.x > b.x:
			return -1
		case a.x < b.x:
			return 1
		}
		return 0
	})
	if minP > 0 {
		es = es[:slices.IndexFunc(append(es, entry{x: math.Inf(-1)}), func(e entry) bool { return math.Exp(e.x-top) < minP })]
	}
	if topK > 0 && topK < len(es) {
		es = es[:topK]
	}
	if topP < 1 {
		total, sum := 0.0, 0.0
		for _, e := range es {
			total += math.Exp(e.x - top)
		}
		for i, e := range es {
			if sum += math.Exp(e.x - top); sum >= topP*total {
				es = es[:i+1]
				break
			}
		}
	}
	best, ids := math.Inf(-1), []int32{}
	for _, e := range es {
		v := e.x + float64(kernels.Gumbel(seed, draw, uint32(e.id)))
		switch {
		case v > best+1e-4:
			best, ids = v, []int32{e.id}
		case v > best-1e-4: // too close to tell in float32
			ids = append(ids, e.id)
		}
	}
	return ids
}

func TestSampleReference(t *testing.T) {
	r := newRig(t, Config{Threads: 2})
	const rows = 6
	for _, v := range []int{5, 1003} {
		d := newDraws(r, rows, v)
		rapid.Check(t, func(rt *rapid.T) {
			rec := d.b.rec
			spread := rapid.Float64Range(0.1, 6).Draw(rt, "spread")
			want := make([][]int32, rows)
			for i := range rows {
				copy(d.row(i), r.normal(v, spread))
				temperature := rapid.Float32Range(0.1, 3).Draw(rt, "temperature")
				topP := rapid.SampledFrom([]float32{1, 1, 0.999, 0.9, 0.3, 0.01}).Draw(rt, "top-p")
				minP := rapid.SampledFrom([]float32{0, 0, 0.01, 0.3, 0.9}).Draw(rt, "min-p")
				topK := rapid.SampledFrom([]int{0, 0, 1, 4, 50, 800, 2000}).Draw(rt, "top-k")
				seed := rapid.Uint64().Draw(rt, "seed")
				rec.RowTemperature[i], rec.RowTopP[i], rec.RowMinP[i], rec.RowTopK[i] = kernels.Bits(temperature), kernels.Bits(topP), kernels.Bits(minP), int32(topK)
				rec.RowSeedLo[i], rec.RowSeedHi[i] = int32(uint32(seed)), int32(uint32(seed>>32))
				rec.RowTop[i] = 7
				want[i] = reference(d.row(i), seed, uint32(i), float64(temperature), float64(minP), topK, float64(topP))
			}
			for i, got := range d.run() {
				if !slices.Contains(want[i], got) {
					rt.Fatalf("row %d drew %d, want %v", i, got, want[i])
				}
				d.describe(rt, i, got)
			}
		})
	}
}

// describe checks a row's logprob, rank and top entries against float64.
func (d *draws) describe(t rapid.TB, i int, token int32) {
	x := f64(d.row(i))
	sum := 0.0
	for _, v := range x {
		sum += math.Exp(v)
	}
	order := make([]int, len(x))
	for j := range order {
		order[j] = j
	}
	slices.SortStableFunc(order, func(a, b int) int {
		if x[a] > x[b] {
			return -1
		} else if x[a] < x[b] {
			return 1
		}
		return 0
	})
	if got, want := float64(values(d.out.Logprob)[i]), x[token]-math.Log(sum); math.Abs(got-want) > 1e-4 {
		t.Fatalf("row %d: logprob %v, want %v", i, got, want)
	}
	if got, want := ints(d.out.Rank, "test")[i], slices.Index(order, int(token))+1; int(got) != want {
		t.Fatalf("row %d: rank %d, want %d", i, got, want)
	}
	for j := range kernels.MaxTopLogprobs {
		at := i*kernels.MaxTopLogprobs + j
		id, lp := ints(d.out.TopID, "test")[at], float64(values(d.out.TopLogprob)[at])
		if j >= min(int(d.b.rec.RowTop[i]), len(x)) {
			if id != -1 {
				t.Fatalf("row %d: an entry %d past the wanted", i, id)
			}
			continue
		}
		if want := x[order[j]] - math.Log(sum); int(id) != order[j] || math.Abs(lp-want) > 1e-4 {
			t.Fatalf("row %d: top %d is %d with %v, want %d with %v", i, j, id, lp, order[j], want)
		}
	}
}

// TestSampleDistribution: over many draws the frequencies are those of the softmax at the temperature (chi-square, α ≈ 10⁻⁶).
func TestSampleDistribution(t *testing.T) {
	r := newRig(t, Config{Threads: 2})
	const rows, v, rounds = 50, 12, 400
	for _, kept := range []int{v, 5} {
		d := newDraws(r, rows, v)
		x := r.normal(v, 1)
		counts := make([]float64, v)
		for round := range rounds {
			for i := range rows {
				copy(d.row(i), x)
				d.b.rec.RowDraw[i], d.b.rec.RowSeedLo[i] = int32(i), int32(round)
				d.b.rec.RowTemperature[i] = kernels.Bits(0.7)
				if kept < v {
					d.b.rec.RowTopK[i] = int32(kept)
				}
			}
			for _, id := range d.run() {
				counts[id]++
			}
		}
		order := greatest(x, negInf, kept, make([]int32, v))
		total := 0.0
		for _, id := range order {
			total += math.Exp(float64(x[id]) / 0.7)
		}
		chi := 0.0
		for id, n := range counts {
			if !slices.Contains(order, int32(id)) {
				if n > 0 {
					t.Fatalf("token %d, outside the top %d, is drawn", id, kept)
				}
				continue
			}
			want := math.Exp(float64(x[id])/0.7) / total * rows * rounds
			chi += (n - want) * (n - want) / want
		}
		if chi > 52 {
			t.Errorf("chi-square of %v with %d degrees of freedom", chi, kept-1)
		}
	}
}

// TestSampleRows: a draw depends on seed, draw and logits alone, not on the row or its neighbours; top-k 1 is greedy.
func TestSampleRows(t *testing.T) {
	r := newRig(t, Config{Threads: 2})
	const rows, v = 9, 500
	d := newDraws(r, rows, v)
	x := r.normal(v, 2)
	var first int32
	for at := range rows {
		for i := range rows {
			copy(d.row(i), r.normal(v, 2))
			d.b.rec.RowSeedLo[i], d.b.rec.RowDraw[i], d.b.rec.RowTopK[i] = int32(i), 3, int32(i%3)
		}
		copy(d.row(at), x)
		d.b.rec.RowSeedLo[at], d.b.rec.RowSeedHi[at], d.b.rec.RowDraw[at], d.b.rec.RowTopK[at] = 1234, 5, 17, 0
		got := append([]int32(nil), d.run()...)
		if at == 0 {
			first = got[0]
		}
		if got[at] != first {
			t.Fatalf("row %d draws %d, row 0 %d", at, got[at], first)
		}
		for i := range rows {
			if want := r.k.ArgMax(d.row(i)); i != at && i%3 == 1 && int(got[i]) != want {
				t.Fatalf("top-k 1 draws %d, greedy %d", got[i], want)
			}
		}
	}
}

// TestSampleControls: penalties, bias and mask act on the draw, never on the log-probabilities.
func TestSampleControls(t *testing.T) {
	r := newRig(t, Config{Threads: 2})
	const v = 40
	d := newDraws(r, 6, v)
	rec := d.b.rec
	for i := range 6 {
		copy(d.row(i), r.normal(v, 0.1))
		d.row(i)[7], d.row(i)[9], d.row(i)[11] = 4, 3, -3
		rec.RowFlags[i] = kernels.RowGreedy
	}
	counts := ints(d.state.Counts, "test")
	// Row 1: repetition over the prompt alone. 4/1.5 < 3.
	rec.RowFlags[1] |= kernels.RowPenalties
	rec.RowRepetition[1] = kernels.Bits(1.5)
	counts[1*v+7] = kernels.SeenInPrompt
	// Row 2: frequency and presence do not count the prompt.
	rec.RowFlags[2] |= kernels.RowPenalties
	rec.RowFrequency[2], rec.RowPresence[2] = kernels.Bits(2), kernels.Bits(2)
	counts[2*v+7] = kernels.SeenInPrompt
	// Row 3: but they count what was generated.
	rec.RowFlags[3] |= kernels.RowPenalties
	rec.RowFrequency[3], rec.RowPresence[3] = kernels.Bits(0.3), kernels.Bits(0.5)
	counts[3*v+7] = 2
	// Row 4: bias, after which token 11 leads.
	rec.RowFlags[4] |= kernels.RowBias
	ints(d.state.BiasID, "test")[4*8+3] = 11
	values(d.state.Bias)[4*8+3] = 100
	// Row 5: the mask allows token 33 alone, and a draw respects it.
	rec.RowFlags[5] = kernels.RowMask
	ints(d.state.Mask, "test")[5*2+1] = 2
	want := []int32{7, 9, 7, 9, 11, 33}
	for round := range 2 {
		got := d.run()
		if round == 0 && !slices.Equal(got, want) {
			t.Fatalf("drew %v, want %v", got, want)
		}
		for i := range got {
			d.describe(t, i, got[i])
		}
	}
	if counts[1*v+9] == 0 || counts[2*v+7] == kernels.SeenInPrompt || counts[0*v+7] != 0 {
		t.Error("counts are not updated")
	}
	// A forced token is reported, not drawn.
	rec.RowForced[0] = 20
	if got := d.run()[0]; got != 20 {
		t.Errorf("the forced token is %d", got)
	}
	d.describe(t, 0, 20)
}

// BenchmarkSample measures a draw from 49,152 tokens, from a flat and from a peaked distribution.
func BenchmarkSample(b *testing.B) {
	const v = 49152
	for name, set := range map[string]func(rec *kernels.Record){
		"greedy": func(rec *kernels.Record) { rec.RowFlags[0] = kernels.RowGreedy },
		"all":    func(*kernels.Record) {},
		"top-p":  func(rec *kernels.Record) { rec.RowTopP[0] = kernels.Bits(0.9) },
		"top-k":  func(rec *kernels.Record) { rec.RowTopK[0] = 40 },
		"top 20": func(rec *kernels.Record) { rec.RowFlags[0], rec.RowTop[0] = kernels.RowGreedy, 20 },
	} {
		for _, spread := range []float64{0.1, 3} {
			b.Run(fmt.Sprintf("%s/spread=%v", name, spread), func(b *testing.B) {
				r := newRig(b, Config{Threads: 1})
				d := newDraws(r, 1, v)
				copy(d.row(0), r.normal(v, spread))
				set(d.b.rec)
				for b.Loop() {
					d.b.rec.RowDraw[0]++
					d.run()
				}
			})
		}
	}
}
